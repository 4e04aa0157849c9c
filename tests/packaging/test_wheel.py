"""The wheel, not the tree: built, installed into a fresh environment, console scripts run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("hafwctl", "hafwd", "hafw-leased", "hafw-syncd", "hafw-raftd")


def run(*argv: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in argv], capture_output=True, text=True, cwd=cwd, check=False
    )


def tracked(*under: str, root: Path = ROOT) -> list[str]:
    """Files that git tracks. An empty list would make every comparison with it pass."""
    done = run("git", "-C", root, "ls-files", "-z", *under)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory)


def build(tmp_path_factory: pytest.TempPathFactory, *environment: str) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # A copy of what git tracks: a stale build folder in the tree must not leak into the wheel.
    tree = tmp_path_factory.mktemp("tree")
    for name in tracked():
        source = ROOT / name
        if source.exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(source.read_bytes())
    done = run(
        "env", *environment, sys.executable, "-m", "pip", "wheel", "-q", "--no-deps",
        "--no-build-isolation",
        "-w", out, tree,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("hafw-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fresh") / "env"
    assert run(sys.executable, "-m", "venv", place).returncode == 0
    requirements = ROOT / "requirements-run.txt"
    for arguments in (("--require-hashes", "-r", requirements), ("--no-deps", wheel)):
        done = run(place / "bin/pip", "install", "-q", *arguments)
        assert done.returncode == 0, done.stderr
    return place


def test_what_git_refuses_is_an_error_not_an_empty_tree(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not a git repository"):
        tracked(root=tmp_path)


def test_the_wheel_holds_three_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"hafw", "cluster", "sync"}
    for data in (
        "hafw/py.typed",
        "hafw/lab/cluster.yaml",
        "hafw/lab/policy.yaml",
        "hafw/lab/ctbench.c",
    ):
        assert data in names
    modules = {name for name in tracked("hafw", "cluster", "sync") if name.endswith(".py")}
    assert "hafw/paths.py" in modules
    assert modules <= set(names)
    assert "sync/_codec.pyi" in names
    assert [name for name in names if name.startswith("sync/_codec.") and name.endswith(".so")]


def test_without_a_compiler_the_wheel_is_whole_but_for_the_native_codec(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = zipfile.ZipFile(build(tmp_path_factory, "CC=false")).namelist()
    whole = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info" not in name} == {
        name for name in whole if ".dist-info" not in name and not name.endswith(".so")
    }


def test_the_installed_codec_loads_and_can_be_switched_off(
    environment: Path, tmp_path: Path
) -> None:
    code = "import sync.native; print(sync.native.codec_name())"
    python = environment / "bin/python"
    assert run(python, "-c", code, cwd=tmp_path).stdout == "native\n"
    done = run("env", "HAFW_CODEC=reference", python, "-c", code, cwd=tmp_path)
    assert done.stdout == "reference (HAFW_CODEC=reference)\n"


def test_the_three_packages_come_from_one_folder(environment: Path, tmp_path: Path) -> None:
    code = (
        "import hafw, cluster, sync, pathlib;"
        "print(len({pathlib.Path(m.__file__).parent.parent for m in (hafw, cluster, sync)}))"
    )
    done = run(environment / "bin/python", "-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_console_script_answers_help(script: str, environment: Path, tmp_path: Path) -> None:
    done = run(environment / "bin" / script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
