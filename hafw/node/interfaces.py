"""The interfaces that the system gives a node: that they are there, up and addressed. Pure.

hafw sets up devices on top of them, and never them.
"""

from __future__ import annotations

from cluster.vmac import DeviceState, VirtualDevice
from hafw.config.model import NodeConfig
from hafw.errors import StateError

__all__ = ["interface_problems", "require_free_names", "require_interfaces"]


def require_interfaces(node_name: str, node: NodeConfig, devices: list[DeviceState]) -> None:
    """Every segment's and link's device is there. StateError names all that are not."""
    present = {device.name for device in devices}
    wanted = [(f"segments.{name}", port.device) for name, port in node.segments.items()]
    wanted += [(f"links.{name}", link.device) for name, link in node.links.items()]
    missing = [
        f"node {node_name}, {place.replace('s.', ' ', 1)}: there is no interface {device} "
        f"(nodes.{node_name}.{place}.device)"
        for place, device in wanted
        if device not in present
    ]
    if missing:
        raise StateError("; ".join(missing) + f"; there are: {', '.join(sorted(present))}")


def require_free_names(
    node_name: str, wanted: list[VirtualDevice], devices: list[DeviceState]
) -> None:
    """No other kind of device sits on the name of a virtual MAC device. StateError."""
    names = {device.name for device in wanted}
    for device in devices:
        if device.name in names and device.kind != "macvlan":
            raise StateError(
                f"node {node_name}: {device.name} is the name of a virtual MAC device of hafw, "
                f"but a {device.kind or 'hardware'} device has it; rename that one"
            )


def interface_problems(node_name: str, node: NodeConfig, devices: list[DeviceState]) -> list[str]:
    """Segment and link devices that are down or lack the node's own address: the system's to
    give, not hafw's."""
    held = {device.name: {a.text for a in device.addresses} for device in devices}
    down = {device.name for device in devices if not device.up}
    wanted = [
        (f"segment {name}", port.device, str(address))
        for name, port in node.segments.items()
        for address in port.addresses
    ]
    wanted += [
        (f"link {name}", link.device, str(link.address)) for name, link in node.links.items()
    ]
    problems = [
        f"node {node_name}, {place}: {device} does not have the address {address}"
        for place, device, address in wanted
        if address not in held[device]
    ]
    places = {place: device for place, device, _ in wanted}
    return problems + [
        f"node {node_name}, {place}: {device} is down"
        for place, device in places.items()
        if device in down
    ]
