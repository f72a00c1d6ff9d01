"""Memory for large results."""

from __future__ import annotations

import ctypes
import mmap

import torch

_LARGE = 1 << 22  # bytes; numpy asks for large pages from the same size on
_PAGE = mmap.PAGESIZE
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux has it

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return what ``torch.empty_like`` does, in large pages where it is large.

    The system clears each page when it is first written to.  Page by page of 4 KiB this takes a third of the
    time in which a backward writes the gradients of experts.
    """
    made = torch.empty_like(tensor)
    size = made.numel() * made.element_size()
    if size >= _LARGE and _ADVICE is not None:
        begin = -(-made.data_ptr() // _PAGE) * _PAGE
        end = (made.data_ptr() + size) // _PAGE * _PAGE
        _madvise(begin, end - begin, _ADVICE)  # advice: refusal changes nothing
    return made
