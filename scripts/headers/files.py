"""The files that follow from the headers."""

from __future__ import annotations

import sys

from . import bounds, engine, initializers, layout, python, reference, report
from .reader import PATHS, ROOT, HeaderError, Headers, read

_PACKAGE = "bindings/python/src/libmoe"


def generated(headers: Headers) -> dict[str, str]:
    """Return what each file has to hold, by its path within the checkout."""
    files = {str(path.relative_to(ROOT)): initializers.written(headers, path.read_text()) for path in PATHS}
    pins = "Sources/CMoE/abi.c"
    before = (ROOT / pins).read_text() if (ROOT / pins).exists() else ""
    files[pins] = layout.pinned(headers, before)
    files["Sources/MoEABI/Boundary/FieldBounds.swift"] = bounds.swift(headers)
    files["Sources/MoEABI/Boundary/Initialisers.swift"] = initializers.swift(headers)
    files[f"{_PACKAGE}/_native/abi.py"] = python.abi(headers)
    files[f"{_PACKAGE}/_native/reports.py"] = report.reports(headers, python.NOTE)
    files[f"{_PACKAGE}/words.py"] = python.words(headers)
    files[f"{_PACKAGE}/presets.py"] = python.presets(headers)
    files.update(reference.pages(headers, (ROOT / "docs" / "functions.md").read_text()))
    return files


def outdated(files: dict[str, str]) -> list[str]:
    """Return the paths of files that hold something else."""
    paths = [(name, ROOT / name) for name in files]
    return [name for name, path in paths if not path.exists() or path.read_text() != files[name]]


def main(arguments: list[str]) -> None:
    """Write the files, or with --check name those that are to be written."""
    if arguments not in ([], ["--check"]):
        raise SystemExit("scripts/abi takes no arguments but --check")
    try:
        headers = read()
        engine.check(headers, ROOT / "Sources")
        files = generated(headers)
    except HeaderError as error:
        raise SystemExit(f"scripts/abi: {error}") from None
    names = outdated(files)
    if arguments and names:
        raise SystemExit(f"not as the headers have it; run scripts/abi: {', '.join(names)}")
    for name in names:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(files[name])
        print(name, file=sys.stderr)
