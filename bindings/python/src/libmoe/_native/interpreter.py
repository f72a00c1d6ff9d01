"""What of the interpreter the package depends on, looked at before anything else is loaded."""

from __future__ import annotations

import ctypes


def require_main_interpreter() -> None:
    """Refuse a sub-interpreter: ctypes brings callbacks of the library into the main one alone."""
    api = ctypes.pythonapi
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    api.PyInterpreterState_GetID.restype = ctypes.c_int64
    api.PyInterpreterState_GetID.argtypes = [ctypes.c_void_p]
    if api.PyInterpreterState_GetID(api.PyInterpreterState_Get()) != 0:
        raise ImportError(
            "libmoe works in the main interpreter alone, and this is a sub-interpreter; "
            "use threads, which compute at the same time, or processes (multiprocessing)"
        )


require_main_interpreter()
