"""Calls that take long: their options, and how they are made."""

from __future__ import annotations

from typing import Any

from ._native import abi, check, fields
from ._native.library import Handle
from .optim import Optimizer
from .routing import Routing


def forward_options(shapes: fields.Shapes, given: dict[str, Any]) -> abi.moe_forward_options:
    """Check what a forward is given besides x and memory, all of it by name."""
    handles = {name: _handle(name, given.get(name)) for name in ("record", "replay")}
    pointers = {name: handle and handle._as_parameter_ for name, handle in handles.items()}
    options = fields.filled(abi.moe_forward_options, shapes, **{**given, **pointers})
    options.handles = tuple(handles.values())  # which nobody frees while the library uses them
    return options


def backward_options(shapes: fields.Shapes, **given: Any) -> abi.moe_backward_options:
    """Check what a backward is given besides dy and memory."""
    optimizer = given["optimizer"]
    if optimizer is not None:
        check.instance("optimizer", optimizer, Optimizer, "a libmoe.AdamW or SGD")
    handle = None if optimizer is None else optimizer._handle
    given["optimizer"] = handle and handle._as_parameter_
    options = fields.filled(abi.moe_backward_options, shapes, **given)
    options.handles = (handle,)
    return options


def _handle(name: str, routing: Routing | None) -> Handle | None:
    """Return the handle of a record, to be held while the library uses it."""
    if routing is not None:
        check.instance(name, routing, Routing, "libmoe.Routing()")
    return None if routing is None else routing._handle
