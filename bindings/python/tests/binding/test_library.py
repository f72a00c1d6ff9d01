"""Finding libmoe.so, and what is said when it is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import compiler
import libmoe
from libmoe._native.library import lib


def import_libmoe(library: Path | str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LIBMOE_LIBRARY": str(library),
        "PYTHONPATH": str(Path(libmoe.__file__).parents[1]),
    }
    program = "from libmoe._native.library import lib; print(lib._name)"
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_the_environment_variable_names_the_library(tmp_path: Path) -> None:
    link = tmp_path / "mine.so"
    link.symlink_to(Path(lib._name).resolve())
    assert import_libmoe(link).stdout == f"{link}\n"


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    """What the user named is the only candidate: another library would be a surprise."""
    missing = tmp_path / "none.so"
    result = import_libmoe(missing)
    assert result.returncode == 1
    assert f"ImportError: libmoe.so was not found.  Tried:\n  {missing}: " in result.stderr
    assert "LIBMOE_LIBRARY" in result.stderr


def refused(library: Path, *texts: str) -> None:
    result = import_libmoe(library)
    assert result.returncode == 1
    assert f"ImportError: libmoe.so could not be loaded.  Tried:\n  {library}: " in result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("needed", "cure"),
    [
        ("libopenblas-absent.so.0", "apt-get install libopenblas0"),
        ("libother.so.3", "package of your system that has"),
    ],
)
def test_a_library_that_needs_another_one(tmp_path: Path, needed: str, cure: str) -> None:
    """The file is there; building it again would not help."""
    source, other, mine = tmp_path / "other.c", tmp_path / needed, tmp_path / "libmoe.so"
    source.write_text("int other(void) { return 1; } int mine(void) { return other(); }")
    shared = [compiler.PATH, "-shared", "-fPIC", str(source)]
    subprocess.run([*shared, f"-Wl,-soname,{needed}", "-o", str(other)], check=True)
    subprocess.run([*shared, "-Wl,--no-as-needed", str(other), "-o", str(mine)], check=True)
    other.unlink()
    refused(mine, f"{mine} is there, but {needed} is not, which it needs", cure)


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    text, part = tmp_path / "text.so", tmp_path / "part.so"
    text.write_text("version https://git-lfs.github.com/spec/v1\n")
    part.write_bytes(Path(lib._name).read_bytes()[:40])
    for path in (text, part):
        refused(path, "is no library for this machine", "make lib")


def test_an_older_build_of_this_version(tmp_path: Path) -> None:
    """It has not all functions."""
    source, other = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(f'const char *moe_version_string(void) {{ return "{libmoe.__version__}"; }}')
    subprocess.run([compiler.PATH, "-shared", "-fPIC", str(source), "-o", str(other)], check=True)
    refused(other, "undefined symbol: moe_", "is not libmoe, or not of this version", "make lib")


def test_another_library() -> None:
    result = import_libmoe("libm.so.6")
    assert "libm.so.6: " in result.stderr
    assert "undefined symbol: moe_version_string" in result.stderr


def test_a_library_of_another_version(tmp_path: Path) -> None:
    source, other = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text('const char *moe_version_string(void) { return "9.8.7"; }')
    subprocess.run([compiler.PATH, "-shared", "-fPIC", str(source), "-o", str(other)], check=True)
    result = import_libmoe(other)
    assert f"{other}: is version 9.8.7, but this package needs {libmoe.__version__}" in result.stderr
