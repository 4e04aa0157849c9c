"""hafwctl as an operator types it, beside the lab and outside all of its nodes."""

from __future__ import annotations

import os
import subprocess
import sys

__all__ = ["hafwctl"]


def hafwctl(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """With `given` on its input. Whatever it answers, it never ends with a traceback."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HAFW_NODE", "HAFW_CONFIG")}
    program = "from hafw.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, timeout=90, check=False, input=given, env=environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done
