"""Good bytes, broken. Pure, and without any test library: the sanitized child uses it too."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

__all__ = ["Target", "fuzz", "mutated"]

Target = Callable[[bytes], None]
"""Takes any bytes; raises for none."""
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(rng: random.Random, good: bytes) -> bytes:
    """Bytes changed, cut out, doubled or cut off: up to four of these."""
    broken = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        if not broken:
            break
        at = rng.randrange(len(broken))
        match rng.randrange(5):
            case 0:
                broken[at] = rng.choice((*INTERESTING, rng.randrange(256)))
            case 1:
                broken[at] ^= 1 << rng.randrange(8)
            case 2:
                del broken[at : at + rng.randint(1, 8)]
            case 3:
                broken[at:at] = broken[at : at + rng.randint(1, 8)]
            case _:
                del broken[at:]
    return bytes(broken)


def fuzz(target: Target, corpus: Sequence[bytes], seed: int, rounds: int) -> None:
    """Each good one, one behind the other, and `rounds` broken ones."""
    rng = random.Random(seed)
    for good in corpus:
        target(good)
    target(b"".join(corpus))
    for _ in range(rounds):
        good = rng.choice(corpus)
        if rng.randrange(4) == 0:
            good += rng.choice(corpus)
        data = mutated(rng, good)
        try:
            target(data)
        except Exception as error:
            error.add_note(f"input: {data.hex()}")
            raise
