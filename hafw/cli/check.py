"""hafwctl check: is a cluster.yaml right, and the policy that it names?"""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["check"]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--no-policy", is_flag=True, help="Only the cluster file.")
def check(file: Path, no_policy: bool) -> None:
    """Check FILE (a cluster.yaml) and its policy; load nothing, ask nobody, need no root.

    Every problem is named with its line and with what would be right. Whether the kernel takes
    the compiled policy is only known where it is loaded.
    """
    from hafw.config.load import load_cluster

    config = load_cluster(file)
    gateways = [name for name, node in config.nodes.items() if node.role == "gateway"]
    others = [name for name in config.nodes if name not in gateways]
    click.echo(
        f"{file}: fine: cluster {config.name}; gateways {', '.join(gateways)}; "
        f"witnesses {', '.join(others) or 'none'}; groups {', '.join(config.groups)}"
    )
    if no_policy:
        return
    from hafw.policy.compile import compile_policy
    from hafw.policy.load import load_policy, policy_file

    source = policy_file(file, config)
    policy = load_policy(source, config)
    for gateway in gateways:
        compile_policy(policy, config, gateway)
    click.echo(f"{source}: fine: compiles for {', '.join(gateways)}")
