"""The verdict over status rows: everything a person with a pager should look at. Pure.

It looks only at the rows of `hafw.node.status_rows`, of one node or of several together, so that
`hafwctl` needs no configuration to judge what the nodes' daemons say, and it judges by the
kernel's deadlines before what a daemon believes.
"""

from __future__ import annotations

from typing import Any

__all__ = ["find_problems"]

CAUSE_CHARS_LONG = 60

Row = dict[str, Any]
Tables = dict[str, list[Row]]
Problem = dict[str, str]


def find_problems(tables: Tables) -> list[Problem]:
    """Rows of ``scope`` (a node or a group) and ``problem``; empty means healthy."""
    problems = _daemon_problems(tables)
    for name in dict.fromkeys(row["group"] for row in tables["groups"]):
        problems += _group_problems(name, [r for r in tables["groups"] if r["group"] == name])
    problems += _device_problems(tables)
    problems += _peer_problems(tables)
    problems += _sync_problems(tables)
    problems += _policy_problems(tables)
    problems += [
        _problem(row["node"], f"alarm of {row['source']}: {row['alarm']}")
        for row in tables["alarms"]
    ]
    return _said_once(problems)


def _said_once(problems: list[Problem]) -> list[Problem]:
    """A long cause that several problems of one scope have (``what: cause``) stands in the first
    of them. The tables of daemons and alarms have it everywhere."""
    said: dict[str, list[str]] = {}
    shorter = []
    for problem in problems:
        scope, text = problem["scope"], problem["problem"]
        before = said.setdefault(scope, [])
        parts = text.split(": ")
        for count in range(1, len(parts)):
            cause = ": ".join(parts[count:])
            if len(cause) >= CAUSE_CHARS_LONG and any(cause in each for each in before):
                text = ": ".join([*parts[:count], "as said above"])
                break
        before.append(problem["problem"])
        shorter.append(_problem(scope, text))
    return shorter


def _problem(scope: str, text: str) -> Problem:
    return {"scope": scope, "problem": text}


def _daemon_problems(tables: Tables) -> list[Problem]:
    return [
        _problem(
            row["node"],
            f"{_title(row['daemon'])} is {row['state']}"
            + (f": {row['reason']}" if row["reason"] else ""),
        )
        for row in tables["daemons"]
        if row["state"] != "up"
    ]


def _title(daemon: str) -> str:
    return daemon if daemon == "hafwd" else f"hafw-{daemon}"


def _group_problems(name: str, rows: list[Row]) -> list[Problem]:
    problems = []
    asked = {row["node"] for row in rows}
    # The kernel's word decides who is ACTIVE; leased's only where the gate cannot be read.
    active = [
        row["node"]
        for row in rows
        if row["gate"] == "open" or (row["gate"] is None and row["role"] == "ACTIVE")
    ]
    views = {row["node"]: row["holder"] for row in rows if row["holder"] is not None}
    elsewhere = {holder for holder in views.values() if holder != "-" and holder not in asked}
    if len(active) > 1:
        problems.append(f"TWO ACTIVE NODES: {' and '.join(active)} have their gates open")
    elif not active and not elsewhere:
        problems.append(
            "no node is ACTIVE: nobody's gate is open"
            if any(row["gate"] is not None for row in rows)
            else "not known who is ACTIVE: neither gates nor leased can be read"
        )
    problems += [
        f"leased of {row['node']} believes it is ACTIVE, but its gate is {row['gate']}"
        for row in rows
        if row["role"] == "ACTIVE" and row["gate"] not in ("open", None)
    ]
    problems += [
        f"gate of {row['node']} is open, but its leased "
        + ("cannot be asked" if row["role"] is None else "does not believe it is ACTIVE")
        for row in rows
        if row["gate"] == "open" and row["role"] != "ACTIVE"
    ]
    if len(set(views.values())) > 1:
        said = ", ".join(
            f"{node} says {'nobody' if holder == '-' else holder}"
            for node, holder in views.items()
        )
        problems.append(f"nodes disagree about the holder: {said}")
    return [_problem(name, text) for text in problems]


def _device_problems(tables: Tables) -> list[Problem]:
    problems = []
    for row in tables["devices"]:
        if row["present"] is False:
            text = f"virtual MAC device {row['device']} is missing"
        elif row["up"] and row["gated"] is False:
            text = f"virtual MAC device {row['device']} is up WITHOUT the gate: it counts as open"
        elif row["present"] and row["gated"] is False:
            text = f"virtual MAC device {row['device']} has no gate"
        elif row["up"] is False:
            text = f"virtual MAC device {row['device']} is down"
        else:
            continue
        problems.append(_problem(row["node"], text))
    return problems


def _peer_problems(tables: Tables) -> list[Problem]:
    problems = [
        _problem(row["node"], f"no heartbeat from {row['peer']} on any link")
        for row in tables["peers"]
        if not row["alive"]
    ]
    dead = {(row["node"], row["peer"]) for row in tables["peers"] if not row["alive"]}
    problems += [
        _problem(row["node"], f"no heartbeat from {row['peer']} on link {row['link']}")
        for row in tables["links"]
        if not row["alive"] and (row["node"], row["peer"]) not in dead
    ]
    out = {
        row["node"]: row["note"]
        for row in tables["notes"]
        if row["source"] == "voters" and "does not vote" in row["note"]
    }
    problems += [
        _problem(
            row["node"],
            "may not vote yet" if row["votes_in_ms"] else out.get(row["node"], "cannot vote"),
        )
        for row in tables["lease"]
        if not row["may_vote"]
    ]
    return problems


def _sync_problems(tables: Tables) -> list[Problem]:
    problems = [
        _problem(row["node"], f"not synced for group {row['group']}: {row['reason'] or 'unsaid'}")
        for row in tables["sync"]
        if not row["synced"]
    ]
    problems += [
        _problem(row["node"], f"{row['stale']} stale entries in group {row['group']}")
        for row in tables["sync"]
        if row["synced"] and row["stale"]
    ]
    return problems


def _policy_problems(tables: Tables) -> list[Problem]:
    problems = []
    for row in tables["policy"]:
        match row["state"]:
            case "in force" | "recorded":
                continue
            case "kept":
                text = f"the new policy failed, generation {row['generation']} is kept"
            case "gone":
                text = "the policy's tables are gone from the kernel"
            case "loading":
                text = "the policy is being loaded"
            case _:
                text = "no policy is in force"
        problems.append(
            _problem(row["node"], text + (f": {row['error']}" if row["error"] else ""))
        )
    hashes = {row["node"]: row["hash"] for row in tables["policy"] if row["hash"]}
    if len(set(hashes.values())) > 1:
        said = ", ".join(f"{node} {digest[:12]}" for node, digest in hashes.items())
        problems.append(_problem("policy", f"the nodes have different policies loaded: {said}"))
    return problems
