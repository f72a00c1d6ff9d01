"""Puts the built libmoe.so into the wheel."""

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Carries the library as libmoe/lib/libmoe.so; one wheel serves every Python 3, since ctypes loads it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the library among the wheel's files, and the wheel after its platform."""
        checkout = Path(self.root).parents[1]
        library = checkout / "build" / "lib" / f"libmoe.so.{self.metadata.version}"
        if not library.exists():
            # Not an exception: pip would bury the sentence under a traceback.
            raise SystemExit(
                f"There is no {library} for the package to carry. "
                "Run `make lib` at the top of a libmoe checkout, and then pip again from there."
            )
        build_data["force_include"][str(library)] = "libmoe/lib/libmoe.so"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
