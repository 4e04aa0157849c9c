"""Fuzzing of everything that reads bytes from a peer or the kernel, by mutation of good ones.

The seed is the parameter: a failure is replayed by running that case alone.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.corpus import CORPUS
from tests.fuzz.mutation import Target, fuzz
from tests.fuzz.native_targets import NATIVE_TARGETS
from tests.fuzz.targets import TARGETS

ALL: dict[str, tuple[str, Target]] = {
    **{name: (name, target) for name, target in TARGETS.items()},
    **NATIVE_TARGETS,
}
names = pytest.mark.parametrize("name", sorted(ALL))


@names
def test_a_few_mutations_raise_only_documented_errors(name: str) -> None:
    corpus, target = ALL[name]
    fuzz(target, CORPUS[corpus], 99, 3000)


@names
@given(data=st.binary(max_size=300))
def test_random_bytes_raise_only_documented_errors(name: str, data: bytes) -> None:
    ALL[name][1](data)


@pytest.mark.long
@names
@pytest.mark.parametrize("seed", range(4))
def test_mutations_raise_only_documented_errors(name: str, seed: int) -> None:
    corpus, target = ALL[name]
    fuzz(target, CORPUS[corpus], seed, 200_000)
