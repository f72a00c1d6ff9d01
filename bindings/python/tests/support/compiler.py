"""The C compiler of this machine, by any of its usual names; a Swift toolchain brings clang."""

from __future__ import annotations

import shutil

PATH = shutil.which("cc") or shutil.which("clang") or "cc"
