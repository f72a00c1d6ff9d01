"""Models from folders as people have them, and back: what :class:`Model` has of them."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path as Place
from typing import TYPE_CHECKING, Any, TypeVar

from . import words
from ._keywords import keywords
from ._native import abi, check, fields
from ._native.callbacks import tell_progress
from ._native.library import Handle, lib
from .checkpoint import Path, encoded
from .context import Context, handle_of
from .sampling import Sampling

Progress = Callable[[int, int], Any]
"""Called with bytes that are done, and with those there are."""

AnyModel = TypeVar("AnyModel", bound="Pretrained")


@keywords
class Pretrained:
    """What :class:`Model` has of folders: reading one, and writing one."""

    if TYPE_CHECKING:
        sampling: Sampling

        @property
        def _handle(self) -> Handle: ...

        @classmethod
        def _from_handle(cls: type[AnyModel], handle: Handle, context: Context | None) -> AnyModel: ...

    @classmethod
    def from_pretrained(
        cls: type[AnyModel],
        folder: Path,
        *,
        weight_dtype: words.FolderDType = "own",
        embedding_dtype: words.FolderDType = "own",
        inference_only: bool = False,
        prepared: words.Prepared = "none",
        resident_limit: int | str = 0,
        progress: Progress | None = None,
        context: Context | None = None,
    ) -> AnyModel:
        """Read a whole model from a folder as transformers' ``save_pretrained`` writes it.

        The folder has config.json, and model.safetensors or its shards; docs/models.md lists the families.
        Every tensor of the files is used, or named in an error.

        Parameters
        ----------
        folder : path
        weight_dtype : {"own", "f32", "bf16", "f16"}
            Of the weights in memory; ``"own"``: that of which the files have most.
        embedding_dtype : {"own", "f32", "bf16"}
            Of the token embedding.
        inference_only : bool
            No memory for gradients, and no backward.
        prepared : {"none", "f32", "bf16"}
            As :meth:`Model.prepare`, for faster generation; with inference_only.
        resident_limit : int or str
            Bytes of weights in memory, also as ``"8GB"``; where there are more, experts stay in the files and
            are read as they are used; with inference_only.  0: no limit.
        progress : callable, optional
            Called with bytes read and all bytes, after each tensor; what it raises ends the reading.
        context : Context, optional
            Whose threads compute; by default the shared one.

        Returns
        -------
        Model
            Its :attr:`sampling` is what generation_config.json asks for, its :attr:`tokenizer` the folder's.

        Raises
        ------
        InvalidArgumentError
            The folder's family is not known, or something in it is wrong: the text names file, key or tensor.
        FileError
            A file cannot be read.
        OutOfMemoryError
            There is no memory for the weights.

        Examples
        --------
        ::

            model = libmoe.Model.from_pretrained("OLMoE-1B-7B", inference_only=True)
            for piece in model.write("Once upon a time", 50):
                print(piece, end="", flush=True)
        """
        options = pretrained_options(
            weight_dtype=weight_dtype,
            embedding_dtype=embedding_dtype,
            inference_only=inference_only,
            prepared=prepared,
            resident_limit=resident_limit,
        )
        tell_progress(options, progress)
        sampling = Sampling.from_pretrained(folder)
        parent = handle_of(context)
        handle = Handle(
            lib.moe_model_load,
            lib.moe_model_free,
            parent,
            encoded(folder),
            ctypes.byref(options),
            keep={"context": parent},
        )
        model = cls._from_handle(handle, context)
        handle.keep["folder"] = True
        model._folder = os.path.abspath(folder)  # type: ignore[attr-defined]
        model.sampling = sampling
        return model

    def save_pretrained(
        self,
        folder: Path,
        *,
        dtype: words.FolderDType = "own",
        max_shard_size: int | str = "50GB",
        config: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Write config.json and the weights, as transformers' ``save_pretrained`` does.

        Tokenizer and defaults of generation are copied from the folder that the model came from, where the
        new one has none.

        Parameters
        ----------
        folder : path
            Made where there is none; files that are not written stay.
        dtype : {"own", "f32", "bf16", "f16"}
            Of the weights in the files; ``"own"``: that of the folder the model came from, or weight_dtype.
        max_shard_size : int or str
            Bytes of a file at most, larger tensors aside; 0: one file.
        config : mapping, optional
            A config.json that describes the model, for one that came from no folder.
        progress : callable, optional
            Called with bytes written and all bytes; what it raises ends the writing.

        Raises
        ------
        InvalidArgumentError
            The model came from no folder and there is no `config`, or this does not fit the model.
        FileError
            A file cannot be written; what was there is as it was.
        """
        text = self._config_text(config)
        options = fields.filled(abi.moe_save_options, dtype=dtype, max_shard_size=max_shard_size, config=text)
        tell_progress(options, progress)
        lib.moe_model_save(self._handle, encoded(folder), ctypes.byref(options))
        source = getattr(self, "_folder", None)
        if source is not None:
            copy_beside(Place(source), Place(os.fspath(folder)))

    def _config_text(self, config: Mapping[str, Any] | None) -> bytes | None:
        """Return what is given, or, of a copy of a model from a folder, that folder's; else NULL."""
        if config is not None:
            check.mapping("config", config, "what config.json has, as a dict")
            return json.dumps(dict(config)).encode()
        source = getattr(self, "_folder", None)
        if source is None or "folder" in self._handle.keep:
            return None
        return (Place(source) / "config.json").read_bytes()


# What stands beside the weights and goes with the model; the weights' own files are written.
BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def copy_beside(source: Place, folder: Place) -> None:
    """Copy tokenizer and defaults from one folder to another that has none."""
    for name in BESIDE:
        here = folder / name
        if (source / name).is_file() and not here.exists():
            unfinished = folder / (name + ".unfinished")
            unfinished.write_bytes((source / name).read_bytes())
            unfinished.replace(here)


def pretrained_options(**given: Any) -> abi.moe_pretrained_options:
    """Return how a folder is opened, as the library reads it."""
    return fields.filled(abi.moe_pretrained_options, **given)
