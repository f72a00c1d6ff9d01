"""Puts the library and what C programs need of it into the wheel, and its source into the sdist."""

import platform
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "native"  # folder of an sdist: the part of a checkout that builds the library
SOURCES = (
    "Package.swift",
    "include",
    "scripts/lib",
    "scripts/setup.sh",
    "scripts/exports",
    "scripts/archive",
)
SOURCES += ("scripts/pkgconfig", "scripts/cmake")


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Carries libmoe/lib and libmoe/include; one wheel serves every Python 3, since ctypes loads it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files that lie outside of the package's folder, and the wheel after what it runs on."""
        native = Path(self.root) / NATIVE
        if not native.exists():
            native = Path(self.root).parents[1]
        if self.target_name == "sdist":
            files = build_data["force_include"]
            # One by one: of several links to a folder, the kernels', hatchling takes one only.
            modules = [f"Sources/{each.name}" for each in (native / "Sources").iterdir()]
            files.update({str(native / name): f"{NATIVE}/{name}" for name in [*SOURCES, *modules]})
            # A link in a checkout, to what an unpacked sdist has not.
            licence = Path(self.root) / "LICENSE"
            files.pop(str(licence), None)
            files[str(licence.resolve())] = "LICENSE"
            return
        number = self.metadata.version
        library = native / "build" / "lib" / f"libmoe.so.{number}"
        if not library.exists() and native.name == NATIVE:
            self._build(native)
        if not library.exists():
            # Not an exception: pip would bury the sentence under a traceback.
            raise SystemExit(
                f"There is no {library} for the package to carry. "
                "Run `make lib` at the top of a libmoe checkout, and then pip again from there."
            )
        # By the name that programs look for which were linked to it.
        soname = f"libmoe.so.{number.rpartition('.')[0]}"
        build_data["force_include"].update(
            {
                str(library): f"libmoe/lib/{soname}",
                str(native / "build" / "lib" / "cmake"): "libmoe/lib/cmake",
                str(native / "build" / "include"): "libmoe/include",
            }
        )
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform(library)}"

    def _build(self, native: Path) -> None:
        self.app.display_info("Building libmoe.so: some minutes")
        if subprocess.run(["sh", str(native / "scripts" / "lib")]).returncode != 0:
            raise SystemExit(
                "libmoe.so could not be built, for the reason above. From its source that takes a Swift "
                "toolchain, 6.2 or later, and binutils; for Linux on x86-64 there is a wheel to install."
            )


def _platform(library: Path) -> str:
    """Return the tag of PEP 600: the newest version of the C library of which a function is used."""
    versions = re.findall(rb"GLIBC_2\.(\d+)\0", library.read_bytes())
    if not versions:
        return sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return f"manylinux_2_{max(map(int, versions))}_{platform.machine()}"
