"""hafwctl cluster voters: who votes for leases, and changing that by one voter at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hafw.cli.raft_asking import ask_raft, propose
from hafw.cli.render import format_option, render
from hafw.cli.where import Scope, find_scope, require_root, scope_options, wait_option
from hafw.errors import RefusedError, StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from cluster.agreed import Member, State
    from hafw.config.model import ClusterConfig
    from hafw.messages import LeasedStatus

__all__ = ["ask_leased", "check_change", "member_of", "voters", "wait_for_change"]

POLL_S = 0.2
WAIT_S = 20.0


@click.command()
@click.option("--add", metavar="NODE", help="Let NODE, a member, vote from now on.")
@click.option(
    "--remove",
    metavar="NODE",
    help="Let NODE vote no longer; it stays a member. Of a voter that is not in cluster.yaml: its "
    "id, or node and its id, as shown.",
)
@click.option(
    "--force", is_flag=True, help="Even if too few of the new voters are heard, or one is left."
)
@wait_option(WAIT_S, "Wait this long for a change to be in force; 0: only say what is wanted.")
@scope_options
@format_option
def voters(
    add: str | None,
    remove: str | None,
    force: bool,
    wait_s: float,
    node: str | None,
    config_file: Path | None,
    fmt: str,
) -> None:
    """Who votes for leases; with --add or --remove, change it by one node.

    What is wanted is agreed on by Raft; hafwd beside its leader has it done. A change comes into
    force once majorities of the old and of the new voters have it on disk, two seconds after.
    Until then it is shown as "next", with the nodes that have stored it. It cannot be taken back;
    the next change waits for it. Exit 1 if it is not in force after --wait; it goes on. Refused
    without --force if too few of the voters to come are heard, or a single one would be left.
    """
    require_root()
    scope = find_scope(node, config_file)
    config = scope.config()
    if add is not None and remove is not None:
        raise RefusedError("one node at a time: --add or --remove")
    name = add or remove
    if name is not None:
        _change(scope, name, add=add is not None, force=force, wait_s=wait_s)
    _, leased = ask_leased(scope)
    click.echo(render(_rows(config, leased), fmt), nl=False)


def ask_leased(scope: Scope) -> tuple[str, LeasedStatus]:
    """The first node of the scope whose leased answers. Raises StateError."""
    from hafw.node.client import LocalClient, Unavailable

    reasons = []
    for name in scope.nodes:
        answer = LocalClient(NodePaths(name)).ask_leased()
        if not isinstance(answer, Unavailable):
            return name, answer
        reasons.append(f"{name}: {answer.reason}")
    raise StateError("; ".join(reasons))


def member_of(scope: Scope, name: str) -> Member:
    """As agreed on, by its name or id. Raises RefusedError if there is no such member."""
    state = _agreed(scope)
    found = [m for m in state.members if m.name == name]
    found += [m for m in state.members if m.id == _id_of(name)]
    if not found:
        known = ", ".join(m.name for m in state.members) or "none: Raft has no state yet"
        raise RefusedError(f"there is no member {name}; members are {known}; nothing was changed")
    return found[0]


def _agreed(scope: Scope) -> State:
    from cluster.agreed import decode_state

    _, status = ask_raft(scope)
    return decode_state(status.state)


def _id_of(name: str) -> int:
    """The id that ``3`` or ``node3`` names; 0: none."""
    digits = name.removeprefix("node")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 3 else 0


def check_change(scope: Scope, member: Member, *, add: bool) -> None:
    """Raises RefusedError if it could not be done now, as the leased asked here sees it."""
    from hafw.node.voters import change_problem

    asked, leased = ask_leased(scope)
    if leased.voters is None:
        raise StateError(f"{asked} runs a leased of another release")
    if (member.id in leased.voters.members) is add:
        raise RefusedError(f"{member.name} {'votes' if add else 'does not vote'} already")
    problem = change_problem(leased, member, add=add)
    if problem:
        forced = "" if member.forced else " (--force if that is meant)"
        raise RefusedError(f"{asked}: {problem}{forced}; nothing was changed")


def wait_for_change(scope: Scope, member: Member, *, add: bool, wait_s: float) -> None:
    """Until the set in force has the member, or no longer has it. Raises RefusedError."""
    from hafw.node.voters import change_words, spare_words

    deadline = time.monotonic() + wait_s
    while True:
        asked, leased = ask_leased(scope)
        voters = leased.voters
        if voters is not None and (member.id in voters.members) is add:
            word = "votes" if add else "no longer votes"
            click.echo(f"{member.name} {word}: voter set {voters.id} is in force", err=True)
            if spare := "" if add else spare_words(voters.members):
                click.echo(spare, err=True)
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    words = change_words(leased, _as_agreed(scope, member)) or "nobody has asked for it yet"
    raise RefusedError(
        f"after {wait_s:g} s {asked} still acts without that change: {member.name} {words}; "
        "it goes on trying: hafwctl cluster members"
    )


def _as_agreed(scope: Scope, member: Member) -> Member:
    from cluster.assignment import outsiders

    state = _agreed(scope)
    return next((m for m in (*state.members, *outsiders(state)) if m.id == member.id), member)


def _change(scope: Scope, name: str, *, add: bool, force: bool, wait_s: float) -> None:
    import msgspec

    from cluster.agreed import DropVoter, SetVotes

    _, leased = ask_leased(scope)
    if leased.two_node:
        raise RefusedError("two nodes without a witness keep their voters; nothing was changed")
    outsider = None if add else _outsider(scope, name, leased)
    member = msgspec.structs.replace(outsider or member_of(scope, name), forced=force)
    check_change(scope, member, add=add)
    asked, _ = ask_raft(scope)
    if outsider is None:
        propose(asked, SetVotes(member.name, "yes" if add else "no", force))
    else:
        propose(asked, DropVoter(member.id, force))
    if wait_s:
        wait_for_change(scope, member, add=add, wait_s=wait_s)


def _outsider(scope: Scope, name: str, leased: LeasedStatus) -> Member | None:
    """The voter of that id, if it votes and cluster.yaml, as agreed on, does not have it."""
    from cluster.agreed import Dropped, State
    from cluster.assignment import outsiders

    node, state = _id_of(name), _agreed(scope)
    known = any(m.name == name or m.id == node for m in state.members)
    if known or leased.voters is None or node not in leased.voters.members:
        return None
    return outsiders(State(dropped=(Dropped(node),)))[0]


def _rows(config: ClusterConfig, leased: LeasedStatus) -> list[dict[str, object]]:
    found = (("in force", leased.voters), ("next", leased.voters_next))
    return [
        {
            "set": voters.id,
            "state": state if voters.id else "not founded",
            "voters": [config.node_name(node) for node in voters.members],
            "stored_by": [config.node_name(node) for node in voters.stored_by],
            "settles_ms": voters.settles_ms,
        }
        for state, voters in found
        if voters is not None
    ]
