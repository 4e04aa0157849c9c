/* The wall clock of one node of the lab, which a drill may step: loaded into the node's processes
 * by labd (LD_PRELOAD), because no namespace covers CLOCK_REALTIME.
 *
 * HAFW_LAB_CLOCK names a file of 16 octets, shared by the node's processes and the drill: how far
 * the node's clock is from the machine's, in nanoseconds, and how often a process has asked for the
 * time. Every way of the C library to ask is covered; the kernel's own uses (times of files, ends of
 * absolute CLOCK_REALTIME waits) are not: a wait that ends by the wall clock is off by the whole
 * step for ever, which is worse than a real step. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL

struct page {
    _Atomic int64_t offset_ns;
    _Atomic uint64_t reads;
};

static struct page nobody;
static struct page *page = &nobody;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("HAFW_LAB_CLOCK");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *found = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found != MAP_FAILED)
        page = found;
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (failed || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE && id != CLOCK_TAI))
        return failed;
    atomic_fetch_add(&page->reads, 1);
    int64_t ns = at->tv_sec * NS_PER_S + at->tv_nsec + atomic_load(&page->offset_ns);
    at->tv_sec = ns / NS_PER_S;
    at->tv_nsec = ns % NS_PER_S;
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return -1;
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *at, int base)
{
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, at) ? base : 0;
}
