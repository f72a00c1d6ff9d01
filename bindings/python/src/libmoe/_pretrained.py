"""Models from folders as people have them, and back: what :class:`Model` has of them."""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as Place
from typing import TYPE_CHECKING, Any, TypeVar

from . import words
from ._beside import files_of, left_behind, model_in, put
from ._gguf import gguf_files, is_gguf
from ._gguf_tokenizer import files_beside
from ._keywords import keywords
from ._native import abi, check, fields
from ._native.callbacks import tell_progress
from ._native.library import Handle, lib
from ._ranks import handle
from ._tensors import Tensors
from .calibration import Calibration
from .checkpoint import Path, encoded, place_of
from .communicator import Communicator
from .context import Context, handle_of
from .errors import FileError, InvalidArgumentError, MoeError
from .sampling import Sampling

Progress = Callable[[int, int], Any]
"""Called with bytes that are done, and with those there are."""

AnyModel = TypeVar("AnyModel", bound="Pretrained")


@keywords
class Pretrained(Tensors):
    """What :class:`Model` has of folders: reading one, and writing one."""

    _longest: int | None = 0  # positions that the folder's model is made for; None: not looked up yet

    if TYPE_CHECKING:
        sampling: Sampling

        @property
        def communicator(self) -> Communicator | None: ...

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
        prepared: words.Prepared | Mapping[str, words.Prepared] = "none",
        resident_limit: int | str = 0,
        unallocated: words.Unallocated | Sequence[words.Unallocated] = (),
        calibration: Calibration | None = None,
        progress: Progress | None = None,
        context: Context | None = None,
        communicator: Communicator | None = None,
        experts_per_rank: Sequence[int] | None = None,
        choice_scope: words.ChoiceScope = "global",
        strategy: words.Strategy = "exclusive",
        hot_experts: int | Sequence[int] = 0,
    ) -> AnyModel:
        """Read a whole model from a folder as transformers' ``save_pretrained`` writes it, or a GGUF file.

        The folder has config.json, and model.safetensors or its shards; docs/models.md lists the families,
        and the architectures of GGUF files.  Weights may be quantised: they become `weight_dtype`, or stay
        as they are with ``prepared="stored"``.
        Every tensor of the files is used, or named in an error.

        Parameters
        ----------
        folder : path
            Or that of a GGUF file; of several, that of the first.
        weight_dtype : {"own", "f32", "bf16", "f16"}
            Of the weights in memory; ``"own"``: that of which the files have most, of quantised ones bf16.
        embedding_dtype : {"own", "f32", "bf16"}
            Of the token embedding.
        inference_only : bool
            No memory for gradients, and no backward.
        prepared : {"none", "f32", "bf16", "int8", "int8_a8", ..., "stored", "stored_a8", ...} or mapping
            As :meth:`Model.prepare`, for faster generation; few bits are frozen, and the rest is trained over
            them, other forms are with inference_only.  Weights are packed as they are read, and nothing else
            of them is kept: such parameters have no ``data``.  ``"stored"``: what the files hold in few bits
            as it is.  A mapping says it for each matrix, by the first of its patterns that the parameter's
            name has: ``{"layers.*.ffn.*": "int4_a8", "*": "int8"}``; what has none stays as it is.
        resident_limit : int or str
            Bytes of weights in memory, also as ``"8GB"``; where there are more, experts stay in the files and
            are read, and packed, as they are used; with inference_only.  0: no limit.
        unallocated : {"expert_gradients"}
            Memory that the model goes without: that of the experts' gradients, for training with
            ``model.backward(..., optimizer=...)``.
        calibration : Calibration, optional
            By which few bits are chosen while weights are packed, see :func:`libmoe.calibrate`: of a model
            with the same parameters, from this folder for instance; not with experts that stay in the files.
        progress : callable, optional
            Called with bytes read and all bytes, after each tensor; what it raises ends the reading.
        context : Context, optional
            Whose threads compute; by default the shared one.
        communicator, experts_per_rank, choice_scope, strategy, hot_experts
            As of :class:`Model`: every rank reads the folder, which each finds under a path of its own, and
            of experts its own, at least one of each layer.

        Returns
        -------
        Model
            Its :attr:`sampling` is what generation_config.json asks for, its :attr:`tokenizer` the folder's.

        Raises
        ------
        InvalidArgumentError
            The folder's family is not known, or something in it is wrong: the text names file, key or tensor.
        FileError
            There is no such folder or file, a folder has no config.json, or a file cannot be read.
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
            unallocated=unallocated,
        )
        if calibration is not None:
            check.instance("calibration", calibration, Calibration, "libmoe.calibrate(model, text)")
            options.calibration = calibration._handle._as_parameter_
        tell_progress(options, progress)
        sampling = None
        if communicator is None:  # ranks wait for one another: there the library looks first
            require_json(folder)
            sampling = None if is_gguf(folder) else Sampling.from_pretrained(folder)
        given = (handle_of(context), encoded(folder), ctypes.byref(options))
        placed = (communicator, experts_per_rank, choice_scope, strategy, hot_experts)
        own = handle("model", "load", given, *placed)
        model = cls._from_handle(own, context)
        names = ("communicator", "experts_per_rank", "choice_scope", "strategy", "hot_experts")
        model._made_with.update(zip(names, placed))
        own.keep["folder"] = True
        model._folder = os.path.abspath(place_of(folder))
        model._longest = None
        model.sampling = sampling or Sampling.from_pretrained(folder)
        return model

    def _look_at_length(self, length: int) -> None:
        """Warn, once, when a text is longer than those that the folder's model is made for."""
        if self._longest is None:
            self._longest = _longest(getattr(self, "_folder", None))
        if self._longest and length > self._longest:
            limit, self._longest = self._longest, 0
            warnings.warn(
                f"position {length:,} is beyond the {limit:,} that this model is made for "
                "(max_position_embeddings of its config.json): what it computes there may be of no use; give "
                "it shorter texts, or shorter windows",
                RuntimeWarning,
                stacklevel=4,
            )

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
        new one has none.  A folder of another model, by its config.json, is written over: its weights go, and
        its tokenizer and defaults are replaced; a warning names what then is left of them.

        Of a model over ranks all call it, and rank 0 writes.  Tensors that the model has not read (of
        pictures, of layers that predict further tokens) are not written, and a warning names them.

        Parameters
        ----------
        folder : path
            Made where there is none; all other files that are not written stay.
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
            A file cannot be written; what was there is as it was.  Or what goes along from the model's first
            folder, such as the tokenizer, cannot be read or written: the weights may be the new ones then.
        """
        text = self._config_text(config)
        source = getattr(self, "_folder", None)
        left = left_out(source) if source is not None else ""
        options = fields.filled(abi.moe_save_options, dtype=dtype, max_shard_size=max_shard_size, config=text)
        tell_progress(options, progress)
        place = place_of(folder)
        before = model_in(place)
        lib.moe_model_save(self._handle, encoded(folder), ctypes.byref(options))
        if self.communicator is not None and self.communicator.rank > 0:
            return
        beside: dict[str, bytes] = {}
        said = ""
        if source is not None and is_gguf(source):
            beside, said = files_beside(source)
        elif source is not None:
            beside = files_of(Place(source))
        is_other = before is not None and before != model_in(place)
        put(place, beside, replaces=is_other)
        strange = left_behind(place, beside) if is_other else ""
        if left or said or strange:
            told = "; ".join(filter(None, (left, said, strange)))
            warnings.warn(f"save_pretrained: {told}", UserWarning, stacklevel=3)

    def _config_text(self, config: Mapping[str, Any] | None) -> bytes | None:
        """Return what is given, or, of a copy of a model from a folder, that folder's; else NULL."""
        if config is not None:
            check.mapping("config", config, "what config.json has, as a dict")
            return json.dumps(dict(config)).encode()
        source = getattr(self, "_folder", None)
        if source is None or "folder" in self._handle.keep:
            return None
        if is_gguf(source):
            return config_of(source).encode()
        path = Place(source) / "config.json"
        try:
            return path.read_bytes()
        except OSError as error:
            raise FileError(f"{str(path)!r}: {error.strerror}") from None


def _longest(folder: str | None) -> int:
    """Return how many positions config.json of a folder names; 0: none, or it is gone."""
    from .pretrained import describe_pretrained  # which needs this module

    try:
        return describe_pretrained(folder).max_positions if folder else 0
    except MoeError:
        return 0


def config_of(source: str) -> str:
    """Return the text of a folder's config.json, or what a GGUF file's keys say in the words of one."""
    from .pretrained import describe_pretrained  # which needs this module

    return describe_pretrained(source).config


def left_out(source: str) -> str:
    """Say which tensors of a model's first folder are not written, as far as that is still there."""
    from .pretrained import describe_pretrained  # which needs this module

    try:
        info = describe_pretrained(source)
    except MoeError:
        return ""
    if not info.n_left_tensors:
        return ""
    return (
        f"{info.n_left_tensors} of the {info.n_tensors} tensors in {source!r} are left out, since the model "
        f"does not read them ({info.left_tensors}); who needs them finds them there"
    )


def require_json(folder: Path) -> Place:
    """Return a folder's path; refuse a config.json that is no JSON, and say what it is.

    A folder that has GGUF files and no config.json is refused by the first of them.
    What else is wrong with folder or file the library says.
    """
    place = place_of(folder)
    path = place / "config.json"
    files = gguf_files(folder)
    if files:
        raise FileError(
            f"there is no config.json in {str(place)!r}: name the file {str(place / files[0])!r} in it"
        )
    try:
        text = path.read_bytes() if path.is_file() else b"{}"
        if text.startswith(codecs.BOM_UTF8):
            raise ValueError("it begins with a byte order mark: write it as UTF-8 without one")
        json.loads(text)
    except (OSError, RecursionError):
        return place
    except ValueError as error:
        raise InvalidArgumentError(f"{str(path)!r} is no JSON ({error}): mend it, or copy it anew") from None
    return place


def pretrained_options(**given: Any) -> abi.moe_pretrained_options:
    """Return how a folder is opened, as the library reads it."""
    prepared = given.get("prepared")
    if isinstance(prepared, Mapping):
        parts = _parts(prepared)
        given = {**given, "prepared": "none", "prepared_parts": parts, "n_prepared_parts": len(parts)}
    return fields.filled(abi.moe_pretrained_options, **given)


def _parts(prepared: Mapping[str, Any]) -> ctypes.Array[abi.moe_prepared_part]:
    """Return how single matrices are kept, by patterns of their names."""
    parts = (abi.moe_prepared_part * len(prepared))()
    for part, (pattern, form) in zip(parts, prepared.items()):
        if not isinstance(pattern, str) or "\0" in pattern:
            raise InvalidArgumentError(f"prepared: {pattern!r} is no pattern, such as 'layers.*.ffn.*'")
        part.pattern = pattern.encode()
        part.prepared = check.choice(f"prepared[{pattern!r}]", form, abi.PREPARED)
    return parts
