/* The loops beside which ct_sync is measured: they do what the kernel asks for and nothing else.
 *
 *   ctbench receive               take conntrack events until SIGTERM (floor of the owner's side)
 *   ctbench insert FILE RATE N L  send the requests in FILE, N in one system call, RATE a second (0:
 *                                 as fast as it goes); L=1 keeps an event socket open beside it that
 *                                 drops what this program asked for (floor of the replica's side)
 *   ctbench stamp FILE            write when each entry was made, until SIGTERM
 *   ctbench packets RATE COUNT    one UDP packet for each of COUNT flows
 *
 * One line of JSON on stdout at the end. In the network namespace it is started in.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { VLEN = 64, SLOT = 2048, GROUPS_ALL = 0x3f, GROUP_NEW = 1, RCVBUF = 64 << 20 };
enum { CTA_TUPLE_ORIG = 1, CTA_TIMESTAMP_EVENT = 27, TUPLE_MAX = 80 };

static volatile sig_atomic_t ending;

static void end(int number)
{
	(void)number;
	ending = 1;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int netlink(unsigned groups)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = groups };
	int size = RCVBUF;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		die("a netlink socket");
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
		die("SO_RCVBUFFORCE");
	return fd;
}

static uint32_t port_of(int fd)
{
	struct sockaddr_nl address;
	socklen_t length = sizeof address;

	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		die("getsockname");
	return address.nl_pid;
}

/* One batch of datagrams; 0 if none wait, -1 after an overrun. */
static char buffers[VLEN][SLOT];
static struct mmsghdr headers[VLEN];

static int receive(int fd)
{
	static struct iovec vectors[VLEN];
	int count;

	if (!vectors[0].iov_len) {
		for (int i = 0; i < VLEN; i++) {
			vectors[i].iov_base = buffers[i];
			vectors[i].iov_len = SLOT;
			headers[i].msg_hdr.msg_iov = &vectors[i];
			headers[i].msg_hdr.msg_iovlen = 1;
		}
	}
	count = recvmmsg(fd, headers, VLEN, MSG_DONTWAIT, NULL);
	if (count >= 0)
		return count;
	if (errno == EAGAIN || errno == EINTR)
		return 0;
	if (errno == ENOBUFS)
		return -1;
	die("recvmmsg");
	return 0;
}

static int floor_receive(void)
{
	struct pollfd waiting = { .fd = netlink(GROUPS_ALL), .events = POLLIN };
	uint64_t events = 0, bytes = 0, overruns = 0, calls = 0;

	puts("ready");
	fflush(stdout);
	while (!ending) {
		int count;

		if (poll(&waiting, 1, -1) < 0)
			continue;
		while ((count = receive(waiting.fd)) != 0) {
			calls++;
			if (count < 0) {
				overruns++;
				continue;
			}
			events += (uint64_t)count;
			for (int i = 0; i < count; i++)
				bytes += headers[i].msg_len;
		}
	}
	printf("{\"done\":%lu,\"bytes\":%lu,\"failed\":%lu,\"calls\":%lu,\"cpu_ns\":%lu}\n", events,
	       bytes, overruns, calls, now_ns(CLOCK_PROCESS_CPUTIME_ID));
	return 0;
}

/* Keep every message away whose nlmsg_pid is `port` (classic BPF loads are big-endian). */
static void drop_echo(int fd, uint32_t port)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 12),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(port), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0),
		BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
	};
	struct sock_fprog program = { .len = sizeof code / sizeof *code, .filter = code };

	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0)
		die("SO_ATTACH_FILTER");
}

static void wait_until(uint64_t at_ns)
{
	struct timespec t = { .tv_sec = (time_t)(at_ns / 1000000000u),
			      .tv_nsec = (long)(at_ns % 1000000000u) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR && !ending)
		;
}

/* Errors of what was just sent: they wait when send() returns. */
static uint64_t errors(int fd, int *first)
{
	static char answers[1 << 16];
	uint64_t found = 0;
	ssize_t length;

	while ((length = recv(fd, answers, sizeof answers, MSG_DONTWAIT)) > 0) {
		struct nlmsghdr *one = (struct nlmsghdr *)answers;

		for (unsigned left = (unsigned)length; NLMSG_OK(one, left);
		     one = NLMSG_NEXT(one, left)) {
			struct nlmsgerr *error = NLMSG_DATA(one);

			if (one->nlmsg_type != NLMSG_ERROR || error->error == 0)
				continue;
			if (!*first)
				*first = -error->error;
			found++;
		}
	}
	return found;
}

static int insert(const char *path, double rate, unsigned batch, int listens)
{
	struct stat status;
	int file = open(path, O_RDONLY | O_CLOEXEC), fd = netlink(0), first = 0;
	uint64_t done = 0, failed = 0, late_ns = 0, begun, cpu, wall;
	char *data, *at, *stop;

	if (file < 0 || fstat(file, &status) < 0)
		die(path);
	data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
	if (data == MAP_FAILED)
		die("mmap");
	if (listens)
		drop_echo(netlink(GROUPS_ALL), port_of(fd));
	at = data;
	stop = data + status.st_size;
	cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
	begun = now_ns(CLOCK_MONOTONIC);
	while (at < stop && !ending) {
		char *from = at;

		for (unsigned i = 0; i < batch && at < stop; i++) {
			at += (((struct nlmsghdr *)at)->nlmsg_len + 3u) & ~3u;
			done++;
		}
		if (send(fd, from, (size_t)(at - from), 0) < 0)
			die("send");
		failed += errors(fd, &first);
		if (rate > 0) {
			uint64_t due = begun + (uint64_t)((double)done / rate * 1e9);
			uint64_t now = now_ns(CLOCK_MONOTONIC);

			if (now < due)
				wait_until(due);
			else if (now - due > late_ns)
				late_ns = now - due;
		}
	}
	wall = now_ns(CLOCK_MONOTONIC) - begun;
	cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	printf("{\"done\":%lu,\"failed\":%lu,\"errno\":%d,\"late_ns\":%lu,\"wall_ns\":%lu,"
	       "\"cpu_ns\":%lu}\n", done, failed, first, late_ns, wall, cpu);
	return 0;
}

/* What `stamp` writes for each NEW event. */
struct record {
	uint64_t kernel_ns; /* CTA_TIMESTAMP_EVENT: made by the kernel with the event; or 0 */
	uint64_t seen_ns;   /* when it was received here, CLOCK_REALTIME */
	uint32_t length;
	char tuple[TUPLE_MAX + 4];
};

static void note(FILE *file, const char *message, unsigned length, uint64_t seen_ns)
{
	const struct nlmsghdr *header = (const void *)message;
	struct record record = { .seen_ns = seen_ns };
	unsigned at = NLMSG_HDRLEN + 4;

	if (length < at || header->nlmsg_type != 0x100 || !(header->nlmsg_flags & NLM_F_CREATE))
		return;
	while (at + 4 <= length) {
		const struct nlattr *one = (const void *)(message + at);
		unsigned size = one->nla_len;

		if (size < 4 || at + size > length)
			return;
		if ((one->nla_type & NLA_TYPE_MASK) == CTA_TUPLE_ORIG && size - 4 <= TUPLE_MAX) {
			record.length = size - 4;
			memcpy(record.tuple, message + at + 4, size - 4);
		} else if ((one->nla_type & NLA_TYPE_MASK) == CTA_TIMESTAMP_EVENT && size == 12) {
			uint64_t big;

			memcpy(&big, message + at + 4, 8);
			record.kernel_ns = __builtin_bswap64(big);
		}
		at += (size + 3u) & ~3u;
	}
	if (record.length)
		fwrite(&record, sizeof record, 1, file);
}

static int stamp(const char *path)
{
	struct pollfd waiting = { .fd = netlink(GROUP_NEW), .events = POLLIN };
	FILE *file = fopen(path, "wb");
	uint64_t events = 0, overruns = 0;

	if (!file)
		die(path);
	puts("ready");
	fflush(stdout);
	while (!ending) {
		int count;

		if (poll(&waiting, 1, -1) < 0)
			continue;
		while ((count = receive(waiting.fd)) != 0) {
			uint64_t seen = now_ns(CLOCK_REALTIME);

			overruns += count < 0;
			for (int i = 0; i < count; i++)
				note(file, buffers[i], headers[i].msg_len, seen);
			events += count > 0 ? (uint64_t)count : 0;
		}
	}
	if (fclose(file))
		die(path);
	printf("{\"done\":%lu,\"failed\":%lu,\"cpu_ns\":%lu}\n", events, overruns,
	       now_ns(CLOCK_PROCESS_CPUTIME_ID));
	return 0;
}

static uint16_t checksum(const void *header)
{
	const uint16_t *words = header;
	uint32_t sum = 0;

	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum >> 16) + (sum & 0xffff);
	return (uint16_t)~(sum + (sum >> 16));
}

/* From 10.64.0.0/10 to 198.51.100.10, every packet of another host: a flow each. */
static int packets(double rate, unsigned count)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0xc633640a) };
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	uint64_t begun = now_ns(CLOCK_MONOTONIC), failed = 0, wall;

	if (fd < 0)
		die("a raw socket");
	for (unsigned number = 0; number < count && !ending; number++) {
		uint16_t port = htons((uint16_t)(1024 + number / 50000));
		struct {
			uint8_t version, tos;
			uint16_t length, id, fragment;
			uint8_t ttl, protocol;
			uint16_t sum;
			uint32_t src, dst;
			uint16_t sport, dport, udp_length, udp_sum;
		} packet = {
			.version = 0x45, .length = htons(28), .ttl = 64, .protocol = IPPROTO_UDP,
			.src = htonl(0x0a400000 + number), .dst = to.sin_addr.s_addr,
			.sport = htons((uint16_t)(1024 + number % 50000)), .dport = port,
			.udp_length = htons(8),
		};

		packet.sum = checksum(&packet);
		if (sendto(fd, &packet, 28, 0, (struct sockaddr *)&to, sizeof to) < 0)
			failed++;
		if (rate > 0 && number % 16 == 15)
			wait_until(begun + (uint64_t)(number / rate * 1e9));
	}
	wall = now_ns(CLOCK_MONOTONIC) - begun;
	printf("{\"done\":%u,\"failed\":%lu,\"wall_ns\":%lu,\"cpu_ns\":%lu}\n", count, failed, wall,
	       now_ns(CLOCK_PROCESS_CPUTIME_ID));
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = end };

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	if (argc == 2 && !strcmp(argv[1], "receive"))
		return floor_receive();
	if (argc == 6 && !strcmp(argv[1], "insert"))
		return insert(argv[2], atof(argv[3]), (unsigned)atoi(argv[4]), atoi(argv[5]));
	if (argc == 3 && !strcmp(argv[1], "stamp"))
		return stamp(argv[2]);
	if (argc == 4 && !strcmp(argv[1], "packets"))
		return packets(atof(argv[2]), (unsigned)atoi(argv[3]));
	fputs("usage: ctbench receive | insert FILE RATE BATCH LISTENS | stamp FILE | "
	      "packets RATE COUNT\n", stderr);
	return 2;
}
