"""What a folder holds, before anything of it is read."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import words
from ._keywords import keywords
from ._native import abi, fields
from ._native.library import Handle, lib
from ._pretrained import pretrained_options, require_json
from .checkpoint import Path, encoded
from .context import Context, handle_of

__all__ = ["PretrainedInfo", "describe_pretrained", "pretrained_families"]


@dataclass(frozen=True)
class PretrainedInfo:
    """A folder's model, see :func:`describe_pretrained`.

    Attributes
    ----------
    model_type : str
        Its family.
    n_layers, n_moe_layers, vocabulary_size, hidden_size : int
    n_experts, top_k : int
        Of a layer, and those that a token uses; 0 without any.
    n_parameters, n_active : int
        Numbers in all tensors, and those that a token uses.
    max_positions : int
        Of the longest text it is made for; 0: not said.
    dtype : {"f32", "bf16", "f16"}
        Of most of the files' weights.
    file_bytes, parameter_bytes, expert_bytes : int
        Of the tensors in the files, of the parameters in memory, and of the experts among these.
    n_tensors, n_left_tensors : int
        In the files, and those that the model does not read.
    left_tensors, ignored_keys : str
        The first of these, and the keys of config.json that change no number.
    config : str
        The text of config.json; of a GGUF file what its keys say in the words of one.
    """

    model_type: str
    n_layers: int
    n_moe_layers: int
    vocabulary_size: int
    hidden_size: int
    n_experts: int
    top_k: int
    n_parameters: int
    n_active: int
    max_positions: int
    dtype: str
    file_bytes: int
    parameter_bytes: int
    expert_bytes: int
    n_tensors: int
    n_left_tensors: int
    left_tensors: str
    ignored_keys: str
    config: str = field(repr=False)


@keywords
def describe_pretrained(
    folder: Path,
    *,
    weight_dtype: words.FolderDType = "own",
    inference_only: bool = False,
    context: Context | None = None,
) -> PretrainedInfo:
    """Return what a folder holds; no weights are read.

    Parameters
    ----------
    folder : path
        As of :meth:`Model.from_pretrained`.
    weight_dtype : {"own", "f32", "bf16", "f16"}
        In which parameter_bytes and expert_bytes are counted.
    inference_only : bool
    context : Context, optional
        By default the shared one.

    Raises
    ------
    InvalidArgumentError
        It cannot be read into a model; the text names file, key or tensor.
    FileError
        A file cannot be opened.
    """
    options = pretrained_options(weight_dtype=weight_dtype, inference_only=inference_only)
    require_json(folder)
    parent = handle_of(context)
    opened = Handle(
        lib.moe_pretrained_open,
        lib.moe_pretrained_free,
        parent,
        encoded(folder),
        ctypes.byref(options),
        keep={"context": parent},
    )
    info, config = abi.moe_pretrained_info(), abi.moe_model_config()
    lib.moe_pretrained_describe(opened, ctypes.byref(info))
    lib.moe_pretrained_config(opened, ctypes.byref(config))
    experts = config.moe.contents if config.moe else None
    return PretrainedInfo(
        model_type=_text(info.model_type),
        n_layers=config.n_layers,
        n_moe_layers=info.n_moe_layers,
        vocabulary_size=config.vocabulary_size,
        hidden_size=config.hidden_size,
        n_experts=experts.n_experts if experts else 0,
        top_k=experts.top_k if experts else 0,
        n_parameters=info.n_parameters,
        n_active=info.n_active,
        max_positions=info.max_positions,
        dtype=fields.from_c(info, "dtype"),
        file_bytes=info.file_bytes,
        parameter_bytes=info.parameter_bytes,
        expert_bytes=info.expert_bytes,
        n_tensors=info.n_tensors,
        n_left_tensors=info.n_left_tensors,
        left_tensors=_text(info.left_tensors),
        ignored_keys=_text(info.ignored_keys),
        config=_text(info.config),
    )


def pretrained_families() -> list[str]:
    """Return the ``model_type`` of each family that can be read."""
    return list(_families())


def _families() -> Iterator[str]:
    index = 0
    while (name := lib.moe_pretrained_family(index)) is not None:
        yield _text(name)
        index += 1


def _text(found: bytes | None) -> str:
    return "" if found is None else found.decode(errors="replace")
