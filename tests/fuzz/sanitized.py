"""A program: every native target over a corpus, with a codec built by `tests.fuzz.sanitizers`.

Arguments: the codec's file, a JSON file of corpora in hex, a seed, the rounds of each target.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import sync


def use(codec: Path) -> None:
    """This file is `sync._codec` from now on."""
    loader = ExtensionFileLoader("sync._codec", str(codec))
    spec = spec_from_file_location("sync._codec", codec, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["sync._codec"] = module
    sync._codec = module


def main() -> None:
    codec, corpora, seed, rounds = sys.argv[1:]
    use(Path(codec))
    from tests.fuzz.mutation import fuzz
    from tests.fuzz.native_targets import NATIVE_TARGETS

    known = json.loads(Path(corpora).read_text())
    for name, (corpus, target) in NATIVE_TARGETS.items():
        fuzz(target, [bytes.fromhex(one) for one in known[corpus]], int(seed), int(rounds))
        print(f"{name}: done", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
