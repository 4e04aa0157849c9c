"""The native codec under the sanitizers: no input makes it touch memory that is not its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.corpus import CORPUS, DELTAS
from tests.fuzz.native_targets import NATIVE_TARGETS
from tests.fuzz.sanitizers import ROOT, build, run

ASAN_FOUND, UBSAN_FOUND = 99, 98


pytestmark = pytest.mark.long  # The build alone takes most of a minute.


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "sync/_codec.pyx", tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpora") / "corpora.json"
    file.write_text(
        json.dumps({name: [one.hex() for one in corpus] for name, corpus in CORPUS.items()})
    )
    return file


def fuzz(codec: Path, corpora: Path, seed: int, rounds: int) -> None:
    done = run("-m", "tests.fuzz.sanitized", codec, corpora, str(seed), str(rounds))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{name}: done" for name in NATIVE_TARGETS]


@pytest.mark.parametrize("seed", range(4))
def test_many_mutations(codec: Path, corpora: Path, seed: int) -> None:
    fuzz(codec, corpora, seed, 100_000)


def test_a_planted_read_beyond_the_end_is_found(tmp_path: Path) -> None:
    module = build(ROOT / "tests/fuzz/planted.pyx", tmp_path)
    # A delta that ends one byte early, read as if that byte were there; then as it is.
    text = "import sys; sys.path.insert(0, sys.argv[1]); import planted; {}"
    cut = f"bytes.fromhex('{DELTAS[1][:-8].hex()}')"
    honest = run("-c", text.format(f"assert planted.read_beyond({cut}, 0)"), module.parent)
    assert honest.returncode == 0, honest.stderr
    planted = run("-c", text.format(f"planted.read_beyond({cut}, 8)"), module.parent)
    assert planted.returncode == ASAN_FOUND, planted.stderr
    assert "heap-buffer-overflow" in planted.stderr
