"""Which codec is taken, and what is said of it."""

from __future__ import annotations

import importlib

import pytest

from sync import _codec, native


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
