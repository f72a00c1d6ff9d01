"""Puts libmoe.so into the wheel, building it first where there is none."""

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Carries the library as libmoe/lib/libmoe.so; one wheel serves every Python 3, since ctypes loads it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the library among the wheel's files, and the wheel after its platform."""
        repository = Path(self.root).parents[1]
        library = repository / "build" / "lib" / f"libmoe.so.{self.metadata.version}"
        if not library.exists():
            subprocess.run(["sh", str(repository / "scripts" / "lib")], check=True)
        build_data["force_include"][str(library)] = "libmoe/lib/libmoe.so"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
