"""Builds Cython modules with AddressSanitizer and UndefinedBehaviorSanitizer, and runs a child."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

__all__ = ["ROOT", "build", "run"]

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
]  # fmt: skip
SECONDS_MAX = 1200


def build(source: Path, out: Path) -> Path:
    """The extension module of `source` in the folder `out`."""
    c_file, module = out / f"{source.stem}.c", out / f"{source.stem}.so"
    cython = [sys.executable, "-m", "cython", "-3", "-I", ROOT / "sync", source, "-o", c_file]
    include = sysconfig.get_path("include")
    for command in (cython, ["gcc", *FLAGS, f"-I{include}", c_file, "-o", module]):
        line = [str(word) for word in command]
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
    return module


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizers preloaded. Its own allocator is off: they must see each object;
    leaks are not looked for: the interpreter leaves much to the end of the process."""
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=98",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=SECONDS_MAX,
        check=False,
    )
