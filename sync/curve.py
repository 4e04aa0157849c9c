"""The CURVE keys of snapshots, derived from the cluster's sync keys. Pure but for libzmq's curve.

Each sync key gives two key pairs, one label each, the same on every node. A server speaks with
the pair of the key that it seals with, and lets in whoever has the client's pair of any key that
it opens with; a client takes the key that the server seals its datagrams with. So a rotation
needs nothing more to be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import zmq
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from zmq.utils import z85

__all__ = ["CurveKeys", "client_keys", "curve_keys"]


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """Z85 keys of one end."""

    public: bytes
    secret: bytes


def curve_keys(master: bytes, end: str) -> CurveKeys:
    """The key pair of `end` ("server" or "client"), the same on every node of the cluster."""
    info = b"hafw snapshot 1 " + end.encode()
    secret = z85.encode(HKDF(SHA256(), 32, salt=None, info=info).derive(master))
    return CurveKeys(zmq.curve_public(secret), secret)


def client_keys(keys: Mapping[int, bytes]) -> frozenset[bytes]:
    """The public keys, as ZAP shows them, of clients that have one of these sync keys."""
    return frozenset(z85.decode(curve_keys(key, "client").public) for key in keys.values())
