"""Links and addresses of the calling thread's network namespace, for the virtual MAC devices.

pyroute2's synchronous API: not to be called inside a running asyncio loop.
"""

from __future__ import annotations

import errno
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cluster.vmac import AddressState, DeviceState, VirtualDevice
from hafw.errors import KernelError

__all__ = ["Links"]

_IFF_UP = 1
_IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x02, 0x08, 0x40
_FOREVER = 0xFFFFFFFF


class Links:
    """A netlink socket to the links. Use as a context."""

    def __init__(self) -> None:
        self._ipr = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ipr.close()

    def devices(self) -> list[DeviceState]:
        """Every device with its addresses."""
        addresses: dict[int, list[AddressState]] = {}
        for message in self._ipr.get_addr():
            flags = message.get_attr("IFA_FLAGS") or message["flags"]
            # A point-to-point address has its own end in IFA_LOCAL.
            own = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            addresses.setdefault(message["index"], []).append(
                AddressState(
                    f"{own}/{message['prefixlen']}",
                    settled=not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED),
                )
            )
        return [
            DeviceState(
                name=message.get_attr("IFLA_IFNAME"),
                ifindex=message["index"],
                up=bool(message["flags"] & _IFF_UP),
                mac=message.get_attr("IFLA_ADDRESS") or "",
                kind=message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
                mode=str(
                    message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_MACVLAN_MODE")
                    or ""
                ),
                parent_ifindex=message.get_attr("IFLA_LINK") or 0,
                addresses=tuple(addresses.get(message["index"], [])),
            )
            for message in self._ipr.get_links()
        ]

    def create(self, device: VirtualDevice, parent_ifindex: int) -> None:
        """Make the macvlan, down."""
        self._ask(
            f"the creation of a macvlan on {device.parent}",
            device.name,
            self._ipr.link,
            "add",
            ifname=device.name,
            kind="macvlan",
            link=parent_ifindex,
            macvlan_mode="private",
            address=device.mac,
        )

    def set_up(self, name: str, up: bool) -> None:
        state = "up" if up else "down"
        self._ask(
            f"taking {state}", name, self._ipr.link, "set", index=self.ifindex(name), state=state
        )

    def delete(self, name: str) -> None:
        self._ask("the removal", name, self._ipr.link, "del", index=self.ifindex(name))

    def ifindex(self, name: str) -> int:
        """KernelError if there is no such device."""
        found = self._ipr.link_lookup(ifname=name)
        if not found:
            raise KernelError(errno.ENODEV, "a look-up", name)
        index: int = found[0]
        return index

    def add_address(self, name: str, address: str) -> None:
        """Without duplicate address detection; an IPv6 VIP is deprecated, so that the node's own
        traffic never takes it as its source. One that is there is made anew."""
        try:
            self._add_address(name, address)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            # The kernel's own, perhaps still in detection: its flags would stay.
            self.remove_address(name, address)
            self._add_address(name, address)

    def _add_address(self, name: str, address: str) -> None:
        text, _, prefix = address.partition("/")
        extra: dict[str, Any] = {}
        if ":" in text:
            extra["flags"] = _IFA_F_NODAD
            if prefix == "128":
                extra |= {"preferred": 0, "valid": _FOREVER}
        self._ask(
            f"the address {address}",
            name,
            self._ipr.addr,
            "add",
            index=self.ifindex(name),
            address=text,
            prefixlen=int(prefix),
            **extra,
        )

    def remove_address(self, name: str, address: str) -> None:
        text, _, prefix = address.partition("/")
        try:
            self._ask(
                f"the removal of the address {address}",
                name,
                self._ipr.addr,
                "del",
                index=self.ifindex(name),
                address=text,
                prefixlen=int(prefix),
            )
        except KernelError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # Gone already: taken along by a set-down.
                raise

    @staticmethod
    def _ask(request: str, target: str, verb: Any, *arguments: Any, **fields: Any) -> None:
        try:
            verb(*arguments, **fields)
        except NetlinkError as error:
            raise KernelError(error.code, request, target, _HINTS.get(error.code)) from None


_HINTS = {
    errno.EPERM: "it needs root or CAP_NET_ADMIN",
    errno.EOPNOTSUPP: "the kernel needs CONFIG_MACVLAN (and CONFIG_IPV6 for IPv6 addresses)",
    errno.EACCES: "IPv6 may be switched off on the device (disable_ipv6)",
}
