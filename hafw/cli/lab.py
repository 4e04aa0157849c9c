"""hafwctl lab: build the lab, remove it, look at it, run something in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hafw.cli.main import EXIT_REFUSED
from hafw.cli.render import Row, format_option, render_tables

if TYPE_CHECKING:
    from hafw.lab.lab import Lab

__all__ = ["lab"]

READY_WAIT_S = 20.0
"""M (2 s) + 3 s is the promise for a cold start; the rest is for a slow machine."""


def _lab(config_file: Path | None = None) -> Lab:
    from hafw.lab.lab import Lab  # imported on use: `hafwctl --help` stays fast

    return Lab(config_file)


@click.group()
def lab() -> None:
    """A whole cluster in network namespaces of this machine.

    Two gateways (gw1, gw2), a witness (wit), a client on the LAN, a server on the WAN and a
    switch, always with the same names and addresses.
    """


@lab.command()
@click.option("--bare", is_flag=True, help="The network only, without the nodes' daemons.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A cluster.yaml of your own. [default: the lab's]",
)
@click.option("--heartbeat-ms", type=click.IntRange(1), help="Override lease.heartbeat_ms.")
@click.option("--lease-ms", type=click.IntRange(1), help="Override lease.lease_ms.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(["sync", "segments", "gate"]),
    help="UNSAFE: leave a protection out, to see that drills catch it. Repeatable.",
)
@click.option(
    "--wait/--no-wait", default=True, help="Wait until the cluster is ready. [default: wait]"
)
def up(
    bare: bool,
    config_file: Path | None,
    heartbeat_ms: int | None,
    lease_ms: int | None,
    without: tuple[str, ...],
    wait: bool,
) -> None:
    """Build the lab and start its cluster.

    Fine if it is up already with the same parameters; a broken one is built anew.
    """
    the_lab = _lab(config_file)
    built = the_lab.up(
        bare=bare, heartbeat_ms=heartbeat_ms, lease_ms=lease_ms, without=frozenset(without)
    )
    if not built:
        click.echo("the lab is up already", err=True)
    elif bare:
        click.echo("the lab is up, bare: no daemons", err=True)
    if not bare and wait:
        if sys.stderr.isatty():
            click.echo("waiting until the cluster is ready ...", err=True)
        the_lab.wait_ready(READY_WAIT_S)
        click.echo("the cluster is ready", err=True)
    if built and sys.stdout.isatty():
        click.echo(
            "  hafwctl status                      what the cluster says\n"
            "  hafwctl lab exec client -- bash     a shell on the LAN\n"
            "  hafwctl lab down                    remove everything"
        )


@lab.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--gateways", type=click.IntRange(2), default=3, show_default=True, help="Two to eight."
)
@click.option(
    "--groups", type=click.IntRange(1), default=2, show_default=True, help="Up to eight."
)
def draw(folder: Path, gateways: int, groups: int) -> None:
    """Write cluster.yaml and policy.yaml of a larger lab into FOLDER, for `lab up --config`.

    An even number of gateways gets a witness. Each group begins its order with another gateway.
    Refused if there are files of these names with other content.
    """
    from hafw.errors import RefusedError, StateError
    from hafw.lab.draw import draw as draw_cluster
    from hafw.lab.recipe import default_config_file

    drawn = {
        folder / "cluster.yaml": draw_cluster(gateways, groups),
        folder / "policy.yaml": default_config_file().with_name("policy.yaml").read_text(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = [file for file, text in drawn.items() if file.exists() and file.read_text() != text]
        if kept:
            names = " and ".join(map(str, kept))
            raise RefusedError(f"{names}: there already, with other content; nothing was written")
        for file, text in drawn.items():
            file.write_text(text)
    except OSError as error:
        raise StateError(f"cannot write into {folder}: {error.strerror}") from None
    click.echo(f"hafwctl lab up --config {folder}/cluster.yaml", err=True)


@lab.command()
def down() -> None:
    """Remove the lab and everything it made, in whatever state it is."""
    removed = _lab().down()
    click.echo("the lab is removed" if removed else "there was no lab", err=True)


@lab.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def exec_(node: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the network namespace of NODE: gw1, gw2, wit, client, server or sw.

    Write `--` before the command. HAFW_NODE and HAFW_CONFIG are set; the exit status is the
    command's.
    """
    from hafw.errors import RefusedError

    if os.geteuid() != 0:
        raise RefusedError("`lab exec` needs root to enter a network namespace; run it with sudo")
    the_lab = _lab()
    # With options of the command allowed, click leaves the `--` in front of it to us.
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("a command is missing after --")
    argv = [*the_lab.nsenter(node), *command]
    environment = {**os.environ, **the_lab.environment(node)}
    # Last in PATH, so that hafwctl is found inside but nothing of the system's is hidden.
    environment["PATH"] = f"{environment.get('PATH', os.defpath)}:{Path(sys.executable).parent}"
    sys.stdout.flush()
    os.execvpe(argv[0], argv, environment)


@lab.command()
@format_option
@click.pass_context
def status(context: click.Context, fmt: str) -> None:
    """Namespaces, processes, links and bridge ports of the lab. Exit 1 if it is not well.

    What the cluster says of itself is `hafwctl status`.
    """
    from hafw.lab.machine import require_machine

    require_machine()
    found = _lab().status()
    match fmt:
        case "json":
            click.echo(render_tables(found, fmt), nl=False)
        case "tsv":
            click.echo(render_tables({"lab": [_summary(found)], **_tables(found)}, fmt), nl=False)
        case _:
            click.echo(_pretty(found), nl=False)
    if not found["up"]:
        context.exit(EXIT_REFUSED)


def _pretty(found: dict[str, Any]) -> str:
    if not found["hosts"]:
        return "there is no lab; `hafwctl lab up` builds one\n"
    kind = "bare" if found["bare"] else f"labd {found['labd'] or 'NOT RUNNING'}"
    without = "".join(f", WITHOUT {feature}" for feature in found["without"])
    head = (
        f"lab {'up' if found['up'] else 'BROKEN'}, {kind}{without}, heartbeat "
        f"{found['heartbeat_ms']} ms, lease {found['lease_ms']} ms, from {found['source']}\n"
    )
    return f"{head}\n{render_tables(_tables(found), 'pretty')}"


def _summary(found: dict[str, Any]) -> Row:
    keys = ("up", "bare", "without", "source", "config", "heartbeat_ms", "lease_ms", "labd")
    return {key: found[key] for key in keys if key in found}


def _tables(found: dict[str, Any]) -> dict[str, list[Row]]:
    """The status as rows, for people and for shell."""
    return {
        "problems": [{"problem": problem} for problem in found["problems"]],
        "hosts": [
            {
                "host": name,
                "namespace": host["namespace"],
                "processes": _processes(host, bare=found["bare"]),
                "fault": "silenced" if host["silenced"] else None,
                "links": " ".join(
                    f"{device}:{'up' if link['up'] and link['carrier'] else 'DOWN'}"
                    for device, link in host["links"].items()
                    if device != "lo"
                ),
            }
            for name, host in found["hosts"].items()
        ],
        "bridges": [
            {
                "bridge": bridge,
                "ports": " ".join(
                    port if well else f"{port}:DOWN" for port, well in ports.items()
                ),
            }
            for bridge, ports in found["bridges"].items()
        ],
    }


def _processes(host: dict[str, Any], *, bare: bool) -> str | None:
    if bare or "processes" not in host:
        return None
    words = [f"{daemon}:{pid or 'DEAD'}" for daemon, pid in host["processes"].items()]
    return " ".join(["held", *words] if host["held"] else words)
