"""hafwctl timers: the profile, the relations it keeps, and the worst case that it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hafw.cli.main import EXIT_REFUSED
from hafw.cli.render import format_option, render, render_tables
from hafw.cli.where import find_scope, require_root, scope_options
from hafw.human import format_duration_s

if TYPE_CHECKING:
    from hafw.config.model import ClusterConfig
    from hafw.node.worst_case import Fault, Measured, Votes

__all__ = ["timers", "timers_document"]

Rows = list[dict[str, Any]]
Document = dict[str, Any]


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@scope_options
@click.option(
    "--rtt-ms",
    type=click.FloatRange(0, 1000),
    help="Reckon with this round trip instead of the measured ones (of a FILE: of 1 ms).",
)
@format_option
@click.pass_context
def timers(
    ctx: click.Context,
    file: Path | None,
    node: str | None,
    config_file: Path | None,
    rtt_ms: float | None,
    fmt: str,
) -> None:
    """How long nobody forwards after each kind of fault, at worst, as a sum with its reasons.

    With the round trips and loop delays that the nodes measure now; of a FILE, a cluster.yaml,
    with an assumed round trip, and no daemon is asked. Exit code 0 if every relation holds, else
    1.
    """
    from hafw.config.load import load_cluster

    status: Document = {"peers": [], "links": [], "lease": []}
    if file is not None:
        config = load_cluster(file)
    else:
        from hafw.cli.status import collect

        require_root()
        scope = find_scope(node, config_file)
        config = scope.config()
        status = collect(scope)
    document = timers_document(config, status, rtt_ms)
    if fmt == "json":
        click.echo(json.dumps(document, indent=2))
    elif fmt == "tsv":
        tables = {name: rows for name, rows in document.items() if isinstance(rows, list)}
        click.echo(render_tables(tables, fmt), nl=False)
    else:
        click.echo(_pretty(document), nl=False)
    ctx.exit(0 if all(row["holds"] for row in document["relations"]) else EXIT_REFUSED)


def timers_document(
    config: ClusterConfig, status: Document, rtt_ms: float | None = None
) -> Document:
    """`status`: the document of `hafwctl status`, or one without rows."""
    from hafw.node.worst_case import (
        ASSUMED_MS,
        Measured,
        profile_of,
        relations,
        round_trip_needed,
        votes_of,
        worst_cases,
        worst_round_trips,
    )

    votes = votes_of(config, status["lease"], status["peers"])
    found = round_trip_needed(config, votes, worst_round_trips(status["peers"]))
    source = "measured" if found is not None and rtt_ms is None else "assumed"
    trip_ms = rtt_ms if rtt_ms is not None else ASSUMED_MS if found is None else found
    loop_ms = max((row["loop_p99_ms"] for row in status["lease"]), default=0.0)
    measured = Measured(trip_ms, loop_ms)
    return {
        "cluster": config.name,
        "profile": profile_of(config.lease),
        "heartbeat_ms": config.lease.heartbeat_ms,
        "lease_ms": config.lease.lease_ms,
        "round_trip_ms": trip_ms,
        "round_trip_source": source,
        "loop_ms": loop_ms,
        "relations": [
            {
                "relation": relation.relation, "left_ms": _rounded(relation.left_ms),
                "right_ms": _rounded(relation.right_ms), "holds": relation.holds,
            }
            for relation in relations(config, measured)
        ],
        "profiles": _profiles(config, measured, votes),
        "round_trips": _round_trips(status),
        "voters_from": votes.source,
        "voters": [{"voter": name, "votes": name in votes.voting} for name in votes.members],
        "worst_cases": [_fault(fault) for fault in worst_cases(config, measured, votes)],
    }  # fmt: skip


def _profiles(config: ClusterConfig, measured: Measured, votes: Votes) -> Rows:
    from hafw.node.worst_case import PROFILES, needed_ms, profile_of, worst_cases

    own = profile_of(config.lease)
    every = {**PROFILES, **({} if own in PROFILES else {own: config.lease})}
    rows = []
    for name, lease in every.items():
        power_cut = worst_cases(config.model_copy(update={"lease": lease}), measured, votes)[0]
        need_ms = needed_ms(lease, measured)
        rows.append(
            {
                "profile": name, "in_force": name == own, "heartbeat_ms": lease.heartbeat_ms,
                "lease_ms": lease.lease_ms, "needs_ms": _rounded(need_ms),
                "fits": need_ms <= lease.lease_ms, "power_cut_ms": _fault(power_cut)["worst_ms"],
            }
        )  # fmt: skip
    return rows


def _round_trips(status: Document) -> Rows:
    keys = ("rtt_min_ms", "rtt_p50_ms", "rtt_p99_ms")
    return [
        {"node": row["node"], "peer": row["peer"], "path": path, **{key: row[key] for key in keys}}
        for table, path_key in (("peers", None), ("links", "link"))
        for row in status[table]
        for path in ["fastest" if path_key is None else row[path_key]]
    ]


def _fault(fault: Fault) -> dict[str, Any]:
    return {
        "fault": fault.fault,
        "worst_ms": None if fault.until else _rounded(fault.worst_ms),
        "least_ms": _rounded(fault.least_ms),
        "sum": [{"ms": _rounded(term.ms), "why": term.why} for term in fault.terms],
        "note": fault.note,
        "until": fault.until,
    }


def _pretty(document: Document) -> str:
    parts = [
        f"cluster {document['cluster']}: profile {document['profile']}, heartbeat "
        f"{document['heartbeat_ms']} ms, lease {document['lease_ms']} ms; round trip "
        f"{_ms(document['round_trip_ms'])} ({document['round_trip_source']}), loop delay "
        f"{_ms(document['loop_ms'])}\n"
        f"voters ({document['voters_from']}): {_voters(document['voters'])}\n",
        render(document["relations"], "pretty", title="relations"),
        render(document["profiles"], "pretty", title="profiles"),
    ]
    if document["round_trips"]:
        parts.append(render(document["round_trips"], "pretty", title="round trips, last minute"))
    lines = ["NOBODY FORWARDS FOR AT MOST\n"]
    for row in document["worst_cases"]:
        if row["until"]:
            lines.append(f"{'no end':>9}  {row['fault']}\n{'':11}until {row['until']}\n")
            continue
        lines.append(f"{_ms(row['worst_ms']):>9}  {row['fault']}\n")
        for place, term in enumerate(row["sum"]):
            lines.append(f"{'':11}{'+' if place else '='} {_ms(term['ms'])}  {term['why']}\n")
        at_best = f"at best {_ms(row['least_ms'])}; " if row["sum"] else ""
        lines.append(f"{'':11}({at_best}{row['note']})\n")
    parts.append("".join(lines))
    return "\n".join(parts)


def _voters(rows: Rows) -> str:
    return ", ".join(f"{row['voter']}{'' if row['votes'] else ' (does not vote)'}" for row in rows)


def _ms(milliseconds: float) -> str:
    return format_duration_s(milliseconds / 1e3)


def _rounded(milliseconds: float) -> float:
    return round(milliseconds, 3)
