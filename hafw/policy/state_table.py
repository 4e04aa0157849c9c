"""Table hafw_state: what outlives a change of policy. Pure.

Sets with timeouts that an operator or a detector fills (``nft add element inet hafw_state blocked4
{ 192.0.2.66 timeout 1h }``). A load keeps the table, its sets and counters, and only writes its
rules anew; a set cannot be used by the rules of another table, so they live here.
"""

from __future__ import annotations

from hafw.policy.expressions import DROP, TableWriter, count, payload

__all__ = ["COUNTERS", "TABLE", "state_table"]

TABLE = "hafw_state"
COUNTERS = {"blocked": "packets from addresses in blocked4 and blocked6"}


def state_table() -> TableWriter:
    table = TableWriter(TABLE)
    for name in COUNTERS:
        table.counter(name)
    table.set("blocked4", "ipv4_addr", [], flags=["timeout"])
    table.set("blocked6", "ipv6_addr", [], flags=["timeout"])
    table.base_chain("raw_prerouting", "prerouting", -310)
    table.rule("raw_prerouting", payload("ip", "saddr", "@blocked4"), count("blocked"), DROP)
    table.rule("raw_prerouting", payload("ip6", "saddr", "@blocked6"), count("blocked"), DROP)
    return table
