"""hafwctl node: a node as a member: drained, in maintenance, online; leaving and joining."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hafw.cli.raft_asking import ask_raft, own_node, propose
from hafw.cli.where import Scope, find_scope, require_root, scope_options, wait_option
from hafw.errors import RefusedError, StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from cluster.agreed import Member, State
    from hafw.messages import LeasedStatus

__all__ = ["node"]

POLL_S = 0.1
WHY_CHARS_MAX = 100


@click.group()
def node() -> None:
    """A node as a member of the cluster: drain it, rest it, bring it back."""


_wait_for_voters = wait_option(
    20.0, "Wait this long for the voter set to follow; 0: only say what is wanted."
)


def _arguments(wait_s: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            wait_option(wait_s, "Wait this long for it to be done; 0: only say what is wanted."),
            click.option(
                "--why",
                default="",
                metavar="TEXT",
                help="Kept beside the state, and as the reason of the moves.",
            ),
            click.argument("name", metavar="NODE", required=False),
            scope_options,
        ):
            command = option(command)
        return command

    return decorate


@node.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@_arguments(60.0)
def drain(
    name: str | None, yes: bool, why: str, wait_s: float,
    node: str | None, config_file: Path | None,
) -> None:  # fmt: skip
    """Hand all groups of NODE over, established flows and all, and keep it the last choice.

    NODE goes on voting, replicates, and takes a group only if no other synced node is there.
    Kept through restarts until `hafwctl node online`. Exit 1 if NODE still holds a group after
    --wait; it goes on trying.
    """
    require_root()
    scope = find_scope(node, config_file)
    member, state = _member(scope, name)
    _require(state, member, "draining")
    _confirm(scope, member, yes, "is drained: it hands over")
    _set(scope, member, "draining", why)
    _wait_drained(scope, member, state, wait_s)


@node.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@_arguments(60.0)
def maintenance(
    name: str | None, yes: bool, why: str, wait_s: float,
    node: str | None, config_file: Path | None,
) -> None:  # fmt: skip
    """Drain NODE; then have it claim no group at all, even if nobody else is left.

    Refused, and NODE stays drained, if a group cannot leave it within --wait: nothing is ever
    given up to nobody. NODE goes on voting. Kept through restarts until `hafwctl node online`.
    """
    require_root()
    scope = find_scope(node, config_file)
    member, state = _member(scope, name)
    _require(state, member, "maintenance")
    _confirm(scope, member, yes, "goes into maintenance: it hands over")
    _set(scope, member, "draining", why)
    _wait_drained(scope, member, state, wait_s)
    try:
        _set(scope, member, "maintenance", why)
    except (RefusedError, StateError) as error:
        words = str(error).removesuffix("; nothing was changed")
        back = f"hafwctl node online {member.name}"
        raise type(error)(f"{words}; {member.name} stays drained, until: {back}") from None
    click.echo(f"{member.name} is in maintenance: it claims nothing", err=True)


@node.command()
@_arguments(30.0)
def online(
    name: str | None, why: str, wait_s: float, node: str | None, config_file: Path | None
) -> None:
    """NODE may carry groups again; waits until it could: heard, voting and synced.

    Daemons of this node that were only just started are waited for, too. A witness carries none:
    it is waited for until it votes. No group comes back by itself, unless it has `preempt`.
    """
    require_root()
    scope = find_scope(node, config_file)
    deadline = time.monotonic() + wait_s
    member, state = _member(scope, name, wait_s)
    _set(scope, member, "online", why)
    if not wait_s:
        click.echo(f"{member.name} is online", err=True)
        return
    while missing := _not_fit(scope, member, state):
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{member.name} is online, but after {wait_s:g} s not ready: {missing}"
            )
        time.sleep(POLL_S)
    able = "votes" if member.role == "witness" else "could take over"
    click.echo(f"{member.name} is online and {able}", err=True)


@node.command()
@click.argument("name", metavar="NODE")
@scope_options
def undamp(name: str, node: str | None, config_file: Path | None) -> None:
    """Prefer NODE again like any other: forget how often it came and went.

    `hafwctl status` shows who is damped, and why. All nodes forget it within two seconds.
    """
    require_root()
    from cluster.agreed import ClearLosses

    scope = find_scope(node, config_file)
    member, _ = _member(scope, name)
    asked, _ = ask_raft(scope)
    propose(asked, ClearLosses(member.name))
    click.echo(f"what damps {member.name} is forgotten", err=True)


@node.command()
@click.argument("given", metavar="TOKEN")
@_wait_for_voters
@scope_options
def join(given: str, wait_s: float, node: str | None, config_file: Path | None) -> None:
    """Be a member that votes, after `leave` or as a new node of cluster.yaml.

    Takes a TOKEN of hafwctl cluster token ("-": from stdin). The node is taken into the voters
    once it is heard in the set in force for three seconds.
    """
    require_root()
    from cluster.assignment import Join, hash_token
    from hafw.cli.voters import member_of, wait_for_change
    from hafw.node.client import LocalClient, Unavailable

    scope = find_scope(node, config_file)
    name = own_node(scope)
    text = sys.stdin.readline().strip() if given == "-" else given
    propose(name, Join(name, hash_token(text), round(time.time())))
    click.echo(f"{name} is a member of the cluster, online", err=True)
    if isinstance(LocalClient(NodePaths(name)).ask_leased(), Unavailable):
        click.echo("its leased does not answer: it votes once that is heard", err=True)
    elif wait_s and scope.config().quorum != "two-node":
        wait_for_change(scope, member_of(scope, name), add=True, wait_s=wait_s)


@node.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even if too few of the other voters are heard.")
@_wait_for_voters
@scope_options
def leave(
    yes: bool, force: bool, wait_s: float, node: str | None, config_file: Path | None
) -> None:
    """No longer be assigned anything, nor vote. To come back takes a token.

    Refused while this node is ACTIVE for a group (move it away first), for the last gateway that
    is online, and if too few of the other voters are heard. Then the node is taken out of the
    voters; two nodes without a witness keep theirs.
    """
    require_root()
    from cluster.assignment import Leave
    from hafw.node.client import LocalClient, Unavailable

    scope = find_scope(node, config_file)
    name = own_node(scope)
    leased = LocalClient(NodePaths(name)).ask_leased()
    if not isinstance(leased, Unavailable) and any(group.active for group in leased.groups):
        raise RefusedError(
            f"{name} is ACTIVE: move its groups away first, with hafwctl group move; "
            "nothing was changed"
        )
    voting = None if scope.config().quorum == "two-node" else _own_vote(scope, name, force)
    click.echo(f"{name} leaves the cluster; it comes back by a token alone", err=True)
    if not yes:
        click.confirm("Leave?", abort=True, err=True)
    propose(name, Leave(name, votes=scope.config().quorum == "two-node", forced=force))
    click.echo(f"{name} has left", err=True)
    if voting is not None and wait_s:
        from hafw.cli.voters import wait_for_change

        wait_for_change(scope, voting, add=False, wait_s=wait_s)


# ---- parts ----------------------------------------------------------------------------------


def _member(scope: Scope, name: str | None, within_s: float = 0.0) -> tuple[Member, State]:
    """Raises RefusedError if there is no such node, or nothing can be changed now, nor within
    that time."""
    from cluster.agreed import decode_state
    from cluster.assignment import find_member
    from hafw.node.raft_client import LEADER_S

    _, status = ask_raft(scope, within_s=max(within_s, LEADER_S))
    state = decode_state(status.state)
    wanted = own_node(scope) if name is None else name
    member = find_member(state, wanted)
    if member is None:
        known = ", ".join(member.name for member in state.members) or "none: Raft has no state yet"
        raise RefusedError(f"there is no member {wanted}; members are {known}")
    if status.read_only:
        raise RefusedError(
            f"the state of {wanted} cannot be changed now: there is no Raft leader, which takes "
            "a majority of the members; nothing was changed"
        )
    return member, state


def _own_vote(scope: Scope, name: str, force: bool) -> Member | None:
    """This node as a member, if it votes, as far as is known; None: it does not. Raises
    RefusedError if too few would be left."""
    import msgspec

    from hafw.cli.voters import check_change, member_of
    from hafw.node.client import LocalClient, Unavailable

    leased = LocalClient(NodePaths(name)).ask_leased()
    if isinstance(leased, Unavailable):
        return None
    member = msgspec.structs.replace(member_of(scope, name), forced=force)
    if leased.voters is None or member.id not in leased.voters.members:
        return None
    check_change(scope, member, add=False)
    return member


def _require(state: State, member: Member, to: Literal["draining", "maintenance"]) -> None:
    """Before anything is announced. Raises RefusedError, in the words in which Raft would."""
    from cluster.agreed import SetMemberState
    from cluster.assignment import apply

    _, refusal = apply(state, SetMemberState(member.name, to))
    if refusal:
        raise RefusedError(f"{refusal}; nothing was changed")


def _set(
    scope: Scope, member: Member, to: Literal["online", "draining", "maintenance"], why: str
) -> None:
    from cluster.agreed import SetMemberState

    if len(why) > WHY_CHARS_MAX:
        raise click.UsageError(f"--why takes {WHY_CHARS_MAX} characters at most")
    asked, _ = ask_raft(scope)
    propose(asked, SetMemberState(member.name, to, why, round(time.time())))


def _confirm(scope: Scope, member: Member, yes: bool, what: str) -> None:
    holders = _holders(scope)
    held = sorted(group for group, holder in holders.items() if holder == member.name)
    click.echo(f"{member.name} {what} {', '.join(held) or 'nothing, it holds no group'}", err=True)
    if not yes and held:
        click.confirm("Go on?", abort=True, err=True)


def _wait_drained(scope: Scope, member: Member, state: State, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        holders = _holders(scope)
        held = [g for g, holder in sorted(holders.items()) if holder == member.name]
        lost = [g for g, holder in sorted(holders.items()) if holder is None]
        if not held and not lost and holders:
            click.echo(f"{member.name} is drained: it holds no group", err=True)
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    if held:
        reasons = "; ".join(
            f"{group.name}: {', '.join(_why_stuck(scope, state, group.name, member.name))}"
            for group in state.groups
            if group.name in held
        )
        raise RefusedError(
            f"{member.name} is to be drained and still holds {', '.join(held)} after {wait_s:g} s "
            f"({reasons}); it goes on trying, until: hafwctl node online {member.name}"
        )
    raise StateError(f"who holds {', '.join(lost) or 'the groups'} is not known: hafwctl status")


def _why_stuck(scope: Scope, state: State, group: str, node: str) -> list[str]:
    """What keeps each other candidate from taking the group, as the holder's leased hears it."""
    from cluster.assignment import find_group, find_member
    from hafw.node.mover import fit_problem

    found = find_group(state, group)
    leased = _leased(scope).get(node)
    if found is None or leased is None:
        return [f"leased of {node} cannot be asked here"]
    members = [find_member(state, name) for name in found.ranked if name != node]
    problems = [fit_problem(leased, found.index, m) for m in members if m is not None]
    return [problem for problem in problems if problem] or ["no move was tried yet"]


def _leased(scope: Scope) -> dict[str, LeasedStatus]:
    from hafw.node.client import LocalClient, Unavailable

    answers = {name: LocalClient(NodePaths(name)).ask_leased() for name in scope.nodes}
    return {n: answer for n, answer in answers.items() if not isinstance(answer, Unavailable)}


def _holders(scope: Scope) -> dict[str, str | None]:
    """By group: its holder's name, as the leaseds of this machine know; None: nobody does."""
    config = scope.config()
    names = {group.index: name for name, group in config.groups.items()}
    found: dict[str, str | None] = {}
    newest: dict[str, int] = {}
    for leased in _leased(scope).values():
        for group in leased.groups:
            name = names.get(group.group)
            if name is None:
                continue
            found.setdefault(name, None)
            if group.holder_id and group.epoch >= newest.get(name, 0):
                newest[name] = group.epoch
                found[name] = config.node_name(group.holder_id)
    return found


def _not_fit(scope: Scope, member: Member, state: State) -> str:
    """Why the node could not take over its groups now; empty: it could. Asked of everybody who
    can be asked here."""
    leased = _leased(scope)
    own = leased.pop(member.name, None)
    if member.name in scope.nodes and (own is None or not own.may_vote):
        return "its leased does not vote yet" if own else "its leased does not answer"
    if not leased and own is None:
        raise StateError("no leased of this machine answers")
    for name, status in sorted(leased.items()):
        peer = next((peer for peer in status.peers if peer.node_id == member.id), None)
        if peer is None or not peer.alive:
            return f"{name} does not hear it"
        if member.role == "witness" and not peer.votes:
            return f"{name} hears that it does not vote"
        for group in state.groups:
            if member.name in group.order and not peer.synced.get(group.index, False):
                return f"{name} hears: {group.name}: {peer.reasons.get(group.index, 'not synced')}"
    return ""
