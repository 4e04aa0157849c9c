"""Which codec is taken, and what is said of it."""

from __future__ import annotations

import importlib

import pytest

from sync import _codec, native
from sync.wire import Sealer, Seals


def test_the_native_module_is_taken_where_it_is() -> None:
    assert native.load() == (_codec, "")
    assert native.codec_name() == "native"


def test_the_environment_forces_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAFW_CODEC", "reference")
    assert native.load() == (None, "HAFW_CODEC=reference")
    assert native.codec_name() == "reference (HAFW_CODEC=reference)"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ModuleNotFoundError("No module named 'sync._codec'"), "the native module was not built"),
        (
            ImportError("libc.so.6: no version"),
            "the native module does not load: libc.so.6: no version",
        ),
    ],
    ids=["not built", "not loadable"],
)
def test_without_a_usable_module_the_reference_runs(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, why: str
) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert native.load() == (None, why)
    assert native.codec_name() == f"reference ({why})"


def test_without_libcrypto_the_reference_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    def sealer() -> Seals:
        return native.make_sealer(bytes(32), key_id=0, cluster_id=7, sender_id=1, session=11)

    assert isinstance(sealer(), _codec.Sealer)
    monkeypatch.setattr(_codec, "crypto_problem", lambda: "libcrypto.so.3: it is not there")
    assert native.codec_name() == "native (without libcrypto.so.3: it is not there)"
    assert isinstance(sealer(), Sealer)
