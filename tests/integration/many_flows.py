"""Put N UDP flows of group 1, translated to the WAN VIP, into this namespace's conntrack table.

They look as if this node's policy had made them: a load for snapshots, without the packets.
"""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address

from hafw.flow import AF_INET, IPPROTO_UDP, FlowEntry, FlowKey, Tuple, hafw_mark
from sync.ctnetlink import build_create
from sync.ctsocket import RequestSocket

BATCH = 100


def main(count: int) -> None:
    node_id = {"gw1": 1, "gw2": 2}[os.environ["HAFW_NODE"]]
    server = ip_address("198.51.100.10").packed
    vip = ip_address("198.51.100.254").packed
    requests = RequestSocket()
    batch: list[bytes] = []
    for number in range(count):
        client = ip_address(f"192.0.2.{1 + number // 30_000}").packed
        port = 20_000 + number % 30_000
        orig = Tuple(AF_INET, IPPROTO_UDP, client, server, port, 7)
        reply = Tuple(AF_INET, IPPROTO_UDP, server, vip, 7, port)
        entry = FlowEntry(FlowKey(0, orig), reply, 0x1E, 600, hafw_mark(1, node_id, node_id))
        batch.append(build_create(entry, seq=number + 1))
        if len(batch) == BATCH or number == count - 1:
            failed = [errno for errno in requests.execute(batch) if errno]
            assert not failed, failed
            batch = []


if __name__ == "__main__":
    main(int(sys.argv[1]))
