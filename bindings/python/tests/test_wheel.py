"""The wheel: it carries the library, and works far from the checkout it was built in."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import libmoe

PACKAGE = Path(__file__).resolve().parents[1]

PROGRAM = """
import numpy, libmoe
from libmoe._library import lib
print(lib._name)
print(libmoe.__version__)
print(libmoe.Layer(8, 16, 4, 2)(numpy.ones((3, 8), numpy.float32)).shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, PACKAGE]
    subprocess.run(command, check=True)
    (path,) = folder.iterdir()
    return path


def test_the_wheel_carries_the_library(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"libmoe-{libmoe.__version__}-py3-none-{platform}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "libmoe/py.typed" in names
        assert [name for name in names if ".so" in name] == ["libmoe/lib/libmoe.so"]
        assert archive.read("libmoe/lib/libmoe.so")[:4] == b"\x7fELF"


def test_an_installed_wheel_runs_anywhere(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    bare = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LIBMOE_LIBRARY")}
    printed = subprocess.run(
        [python, "-c", PROGRAM], cwd=tmp_path, env=bare, check=True, capture_output=True, text=True
    ).stdout
    path, version, shape = printed.splitlines()
    assert Path(path).parts[-3:] == ("libmoe", "lib", "libmoe.so")
    assert Path(path).is_relative_to((tmp_path / "venv").resolve())
    assert (version, shape) == (libmoe.__version__, "(3, 8)")
