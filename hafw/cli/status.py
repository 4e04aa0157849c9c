"""hafwctl status: who is ACTIVE, by the kernel's word and by the daemons'; and what is wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hafw.cli.main import EXIT_REFUSED
from hafw.cli.render import format_option, render, render_tables
from hafw.cli.where import Scope, find_scope, require_root, scope_options
from hafw.errors import HafwError
from hafw.human import format_duration_s

if TYPE_CHECKING:
    from hafw.node.status_rows import Document

__all__ = ["collect", "status"]

Rows = list[dict[str, Any]]


@click.command()
@scope_options
@format_option
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Devices and links as well, and every counter of every daemon. Without it: syncd's that "
    "are not 0.",
)
@click.pass_context
def status(
    ctx: click.Context, node: str | None, config_file: Path | None, fmt: str, verbose: bool
) -> None:
    """The truth about this node, or about all nodes of a running lab.

    Deadlines of the gates are read from the kernel. What a daemon that is down would have said is
    shown as unknown, never from memory. Exit code 0 if all is well, 1 if anything is not.
    """
    require_root()
    document = collect(find_scope(node, config_file))
    if fmt == "pretty":
        click.echo(_pretty(document, verbose), nl=False)
    elif fmt == "json":
        click.echo(render_tables(document, "json"), nl=False)
    else:
        tables = {name: rows for name, rows in document.items() if isinstance(rows, list)}
        click.echo(render_tables(tables, fmt), nl=False)
    ctx.exit(0 if document["healthy"] else EXIT_REFUSED)


def collect(scope: Scope) -> Document:
    """All nodes of the scope at once, merged, with the verdict. Raises HafwError if nothing can
    be learnt of the only node; of several, the others are shown."""
    from hafw.node.status_rows import merge

    with ThreadPoolExecutor(len(scope.nodes)) as pool:
        parts = pool.map(lambda node: _collect_node(scope, node), scope.nodes)
        return merge(scope.cluster_name(), list(parts))


def _collect_node(scope: Scope, node: str) -> dict[str, Rows]:
    """From hafwd, else gathered here, else a row that says why nothing is known."""
    from hafw.node.client import Unavailable
    from hafw.node.status import collect_status, gather_directly
    from hafw.node.status_rows import build_tables, unknown_tables
    from hafw.paths import NodePaths

    paths = NodePaths(node)
    try:
        return collect_status(scope.config, node, paths)
    except HafwError as failure:
        error = failure
    try:
        config = scope.config()
        if node in config.nodes:
            hafwd = Unavailable("silent", str(error))
            return build_tables(config, gather_directly(config, node, paths, hafwd=hafwd))
    except HafwError as failure:
        error = failure
    if len(scope.nodes) == 1:
        raise error
    return unknown_tables(node, str(error))


# ---- for people ---------------------------------------------------------------------------------


def _pretty(document: Document, verbose: bool) -> str:
    count = len(document["problems"])
    verdict = "healthy" if document["healthy"] else f"{count} problem{'s' if count > 1 else ''}"
    words = {"draining": "being drained", "maintenance": "in maintenance", "left": "no member"}
    states = {row["peer"]: row["state"] for row in document["peers"]}  # As this one knows them.
    states |= {row["node"]: row["state"] for row in document["nodes"]}
    verdict += "".join(
        f"; {node} is {words[state]}" for node, state in sorted(states.items()) if state in words
    )
    parts = [f"cluster {document['cluster']}: {verdict}\n"]
    for title, rows in _sections(document, verbose):
        if rows:
            parts.append(render(rows, "pretty", title=title))
    return "\n".join(parts)


def _sections(document: Document, verbose: bool) -> list[tuple[str, Rows]]:
    sections = [
        ("problems", document["problems"]),
        ("groups", [_group(row) for row in document["groups"]]),
        ("nodes", _nodes(document)),
        ("peers", [_peer(row) for row in document["peers"]]),
        ("raft", [_raft(row) for row in document["raft"]]),
        ("replication", [_replication(row) for row in document["sync"]]),
        ("streams", [_stream(row) for row in document["streams"]]),
        ("policy", [_policy(row) for row in document["policy"]]),
        ("damped", document["damped"]),
        ("would we survive losing", _survival(document, verbose)),
        ("lease loop", [_lease(row) for row in document["lease"]]),
        ("lease loop woke late by at most", _loop(document["loop"])),
        ("counters", _counters(document["counters"], verbose)),
        ("notes", document["notes"]),
    ]
    if verbose:
        sections += [("devices", document["devices"]), ("links", document["links"])]
    return sections


def _group(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": row["node"],
        "group": row["group"],
        "role": row["role"] or "unknown",
        "holder": row["holder"] or "unknown",
        "assigned": row["assigned"] or "unknown",
        "epoch": row["epoch"],
        "lease left": _ms(row["lease_left_ms"]),
        "gate (kernel)": row["gate"] or ("-" if row["role"] == "-" else "unknown"),
        "announce left": _ms(row["announce_left_ms"]),
        "accept left": _ms(row["accept_left_ms"]),
        "dropped in/out": _pair(row["dropped_in"], row["dropped_out"]),
        "VIPs": row["vips"],
    }


def _replication(row: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in row.items() if not key.startswith("pass")}
    shown["pass"] = "-"
    if row["pass"] is not None:
        count = f"{row['pass_done']} of {row['pass_total']}, {row['pass_per_s']}/s"
        shown["pass"] = f"{row['pass']} {'at' if row['pass_running'] else 'done:'} {count}"
    return shown


def _nodes(document: Document) -> Rows:
    rows = []
    for node in document["nodes"]:
        row = {key: node[key] for key in ("node", "id", "role")}
        row["state"] = node["state"] or "unknown"
        for daemon in document["daemons"]:
            if daemon["node"] == node["node"]:
                pid = f" ({daemon['pid']})" if daemon["pid"] else ""
                row[daemon["daemon"]] = daemon["state"] + pid
        row.setdefault("syncd", "-")
        row["up"] = min(
            (
                format_duration_s(daemon["up_s"])
                for daemon in document["daemons"]
                if daemon["node"] == node["node"] and daemon["daemon"] == "hafwd"
            ),
            default="-",
        )
        row["restarts"] = sum(
            daemon["restarts"] or 0
            for daemon in document["daemons"]
            if daemon["node"] == node["node"]
        )
        row["asked"] = "hafwd" if node["assembled_by"] == "hafwd" else "directly"
        rows.append(row)
    return rows


def _peer(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": row["node"],
        "peer": row["peer"],
        "alive": row["alive"],
        "proven": row["proven"],
        "links": f"{row['links_alive']}/{row['links']}",
        "last heard": _ms(row["age_ms"]),
        "rtt p50": _ms(row["rtt_p50_ms"]),
        "rtt p99": _ms(row["rtt_p99_ms"]),
        "era": row["era"],
    }


def _raft(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": row["node"],
        "role": row["role"],
        "leader": row["leader"],
        "term": row["term"],
        "commit": row["commit"],
        "applied": row["applied"],
        "hears": f"{row['connected']}/{row['peers']}",
        "changes": "read-only" if row["read_only"] else "yes",
        "moves": row["moves"],
        "state": row["digest"],
    }


def _stream(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": row["node"],
        "peer": row["peer"],
        "accepted": row["accepted"],
        "lag": row["lag_deltas"],
        "applied seq": row["applied_seq"],
        "last beacon": _ms(row["beacon_age_ms"]),
        "delay p50": _ms(row["delay_p50_ms"]),
        "delay p99": _ms(row["delay_p99_ms"]),
        "at risk": row["at_risk"],
        "confirmed p50": _ms(row["confirm_p50_ms"]),
        "confirmed p99": _ms(row["confirm_p99_ms"]),
        "over": row["over"] or None,
    }


def _policy(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "hash": row["hash"][:12] if row["hash"] else None}


def _lease(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": row["node"],
        "realtime": row["realtime"],
        "may vote": row["may_vote"],
        "era": row["era"],
        "voters": f"{row['voters_id']}:{row['voters_hash']}",
        "late p50": _ms(row["loop_p50_ms"]),
        "late p99": _ms(row["loop_p99_ms"]),
        "late max": _ms(row["loop_max_ms"]),
        "ever": _ms(row["loop_worst_ms"]),
        "ago": format_duration_s(row["loop_worst_age_s"]),
    }


def _loop(rows: Rows) -> Rows:
    """One line a node, a column for each bucket that anybody has."""
    edges = sorted({row["late_up_to_ms"] for row in rows})
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        empty = {"node": row["node"], **dict.fromkeys(map(_edge, edges), 0)}
        lines.setdefault(row["node"], empty)[_edge(row["late_up_to_ms"])] = row["count"]
    return list(lines.values())


def _edge(ms: float) -> str:
    return f"{ms * 1000:.0f} us" if ms < 1 else f"{ms:.0f} ms"


def _survival(document: Document, verbose: bool) -> Rows:
    """As the ACTIVE node of each group sees it, else all who say something; `verbose`: all."""
    active = {(row["node"], row["group"]) for row in document["groups"] if row["role"] == "ACTIVE"}
    groups = {group for _, group in active}
    return [
        {
            "group": row["group"],
            "losing": f"{row['kind']} {row['losing']}",
            "survived": row["survives"],
            "why": row["why"],
            "says": row["node"],
        }
        for row in document["survival"]
        if verbose or row["group"] not in groups or (row["node"], row["group"]) in active
    ]


def _counters(rows: Rows, verbose: bool) -> Rows:
    """One line a daemon; without `verbose` only syncd's, and only what is not 0."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if verbose or (row["daemon"] == "syncd" and row["value"]):
            key = row["node"], row["daemon"]
            lines.setdefault(key, []).append(f"{row['counter']}={row['value']}")
    return [
        {"node": node, "daemon": daemon, "counters": " ".join(texts)}
        for (node, daemon), texts in lines.items()
    ]


def _ms(milliseconds: float | None) -> str | None:
    return None if milliseconds is None else format_duration_s(milliseconds / 1e3)


def _pair(one: int | None, other: int | None) -> str | None:
    return None if one is None else f"{one}/{other}"
