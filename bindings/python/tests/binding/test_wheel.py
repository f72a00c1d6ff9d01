"""The wheel: it carries the library, and works far from the checkout it was built in."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import libmoe

PACKAGE = Path(__file__).resolve().parents[2]
SONAME = f"libmoe.so.{libmoe.__version__.rpartition('.')[0]}"

PROGRAM = """
import numpy, libmoe
from libmoe._native.library import lib
print(lib._name)
print(libmoe.__version__)
print(libmoe.Layer(8, 16, 4, 2)(numpy.ones((3, 8), numpy.float32)).shape)
"""


def build(package: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, package]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def test_a_build_beside_another_one_says_that_it_waits() -> None:
    root = PACKAGE.parents[1]
    with open(root / "build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [root / "scripts" / "lib"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert waiting.stderr is not None
        try:
            said = waiting.stderr.readline()
            assert re.fullmatch(r"lib: another build is running in /\S+; this one waits, .*\n", said), said
            assert waiting.poll() is None
        finally:
            os.killpg(waiting.pid, signal.SIGTERM)
            waiting.communicate()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    result = build(PACKAGE, folder)
    assert result.returncode == 0, result.stderr
    (path,) = folder.iterdir()
    return path


def test_the_wheel_carries_the_library(wheel: Path) -> None:
    name = rf"libmoe-{libmoe.__version__}-py3-none-manylinux_2_\d+_{platform.machine()}.whl"
    assert re.fullmatch(name, wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {"libmoe/py.typed", "libmoe/_native/abi.py", "libmoe/words.py"} <= set(names)
        assert [name for name in names if ".so" in name] == [f"libmoe/lib/{SONAME}"]
        assert archive.read(f"libmoe/lib/{SONAME}")[:4] == b"\x7fELF"
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("/WHEEL")]
    assert "Root-Is-Purelib: false" in metadata


def test_the_wheel_has_its_licence_and_a_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        assert archive.read(f"{folder}/licenses/LICENSE") == (PACKAGE / ".." / ".." / "LICENSE").read_bytes()
        lines = archive.read(f"{folder}/METADATA").decode().splitlines()
        commands = archive.read(f"{folder}/entry_points.txt").decode().splitlines()
    assert "License-Expression: Apache-2.0" in lines
    assert "License-File: LICENSE" in lines
    assert commands == ["[console_scripts]", "libmoe = libmoe.cli:main"]


def test_an_installed_wheel_runs_anywhere(wheel: Path, tmp_path: Path) -> None:
    """And numpy is all that it brings along."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    bare = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LIBMOE_LIBRARY")}

    def run(*arguments: str) -> str:
        return subprocess.check_output([python, *arguments], cwd=tmp_path, env=bare, text=True)

    before = run("-m", "pip", "freeze", "--all").splitlines()
    run("-m", "pip", "install", "--quiet", str(wheel))
    added = set(run("-m", "pip", "freeze", "--all").splitlines()) - set(before)
    assert {line.replace(" @ ", "==").split("==")[0] for line in added} == {"libmoe", "numpy"}

    path, version, shape = run("-c", PROGRAM).splitlines()
    assert Path(path).parts[-3:] == ("libmoe", "lib", SONAME)
    assert Path(path).is_relative_to((tmp_path / "venv").resolve())
    assert (version, shape) == (libmoe.__version__, "(3, 8)")
    command = str(tmp_path / "venv" / "bin" / "libmoe")
    shown = [
        subprocess.check_output([*said, "--help"], cwd=tmp_path, env=bare)
        for said in ([command], [python, "-m", "libmoe"])
    ]
    assert b"train" in shown[0]
    assert (
        subprocess.run(
            [command, "train", "nowhere.txt"], env=bare, cwd=tmp_path, capture_output=True
        ).returncode
        == 1
    )


def test_without_the_library_pip_says_what_to_do(tmp_path: Path) -> None:
    """A fresh checkout, in which nothing has been built."""
    package = tmp_path / "bindings" / "python"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("tests", "__pycache__", ".*"))
    result = build(package, tmp_path / "wheels")
    assert result.returncode != 0
    missing = tmp_path / "build" / "lib" / f"libmoe.so.{libmoe.__version__}"
    assert f"There is no {missing} for the package to carry. Run `make lib`" in result.stderr
    assert "Traceback" not in result.stderr
