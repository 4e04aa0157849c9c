"""Which codec runs: the native module, or the pure modules that are its reference. Shell."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

__all__ = ["CODEC_VARIABLE", "codec_name", "load"]

CODEC_VARIABLE = "HAFW_CODEC"
"""``reference`` in the environment forces the reference."""


def load() -> tuple[ModuleType | None, str]:
    """`sync._codec`, or None and why the reference runs."""
    if os.environ.get(CODEC_VARIABLE) == "reference":
        return None, f"{CODEC_VARIABLE}=reference"
    try:
        return importlib.import_module("sync._codec"), ""
    except ModuleNotFoundError:
        return None, "the native module was not built"
    except ImportError as error:
        return None, f"the native module does not load: {error}"


def codec_name() -> str:
    """As the status says it."""
    module, why = load()
    return f"reference ({why})" if module is None else "native"
