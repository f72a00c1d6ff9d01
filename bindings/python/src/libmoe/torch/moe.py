"""A layer as a module of torch."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import words
from .._keywords import keywords
from .._repr import described, named
from .._tensors import Coefficients
from ..communicator import Communicator
from ..errors import ArgumentTypeError, BadStateError, InvalidArgumentError
from ..layer import Layer
from ..routing import Routing
from ._arrays import require_tensor, taken
from ._engine import Engine, empty
from ._first_order import refuse_transforms
from ._function import Call, computed
from ._layer_op import layer as layer_op
from ._layer_op import registered
from ._moves import keeping, options_after
from .report import report_of

_KNOWN = inspect.signature(Layer).parameters
_STEPS = 2**56
_ARRAYS = {  # what a call is given beside x and expert_weights
    "valid_mask": torch.bool,
    "loss_mask": torch.bool,
    "token_ids": torch.int64,
    "expert_indices": torch.int32,
    "global_counts": torch.int64,
    "noise": torch.float32,
    "jitter": torch.float32,
    "second": torch.float32,
}


class _Named(nn.Module):
    """Holds what has a name with a dot in it: ``experts.up.weight`` is ``module.experts.up.weight``."""


@keywords
class MoE(nn.Module):
    """A Mixture-of-Experts layer: every argument is that of :class:`libmoe.Layer`, and so are all names.

    The module's parameters and buffers are the memory that the library computes with, by the names of
    ``libmoe.Layer.parameters``; wherever torch puts them (``load_state_dict(assign=True)``,
    ``share_memory``), the library follows.  Autograd flows through y, through the report's ``aux_loss``,
    ``mean_probability`` and ``sequence_probability``, to x, to given ``expert_weights`` and to parameters.

    Parameters
    ----------
    *arguments, **options
        Of :class:`libmoe.Layer`.  ``unallocated`` is left out: within ``with torch.device("meta"):`` there is
        no memory for parameters, and gradients get theirs at the first backward.  With a ``communicator``
        every rank has the module with its part of the experts, at least one; all ranks call it together, and
        go back together.

    Examples
    --------
    >>> import torch, libmoe.torch
    >>> moe = libmoe.torch.MoE(64, 256, n_experts=8, top_k=2, expert_kind="gated", activation="silu")
    >>> x = torch.randn(3, 5, 64)
    >>> y, report = moe(x, report=True)
    >>> (y.square().mean() + report.aux_loss).backward()
    >>> moe.experts.up.weight.grad.shape
    torch.Size([8, 256, 64])
    """

    @functools.wraps(Layer.__init__, assigned=())  # type: ignore[misc]  # shows the arguments' names
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        given = dict(inspect.signature(Layer).bind(*arguments, **options).arguments)
        if given.pop("unallocated", ()):
            raise InvalidArgumentError(
                "unallocated: a module's memory is torch's; make it within `with torch.device('meta'):` to "
                "have none for the parameters, and leave it out otherwise: gradients get memory at the first "
                "backward"
            )
        self._context = given.pop("context", None)
        self._communicator = given.pop("communicator", None)
        _require_experts(self._communicator, given)
        self._number = registered(self)
        self._options: dict[str, Any] = copy.deepcopy(given)
        self._made: Engine | None = None
        self._coefficients: Coefficients = {0: {}}  # of losses, those that were set
        self._names = [place.name for place in self._engine.places]
        for place in self._engine.places:
            self._register(place.name, empty(place), buffer=place.is_buffer)
        if not any(tensor.is_meta for tensor in self._tensors()):
            self.reset_parameters()

    def _register(self, name: str, tensor: Tensor, *, buffer: bool) -> None:
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, _Named())
            owner = owner.get_submodule(part)
        if buffer:
            owner.register_buffer(leaf, tensor)
        else:
            trainable = self._engine.trainable
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=trainable))

    @property
    def _engine(self) -> Engine:
        """The layer; copies and what was pickled make their own when they first need it."""
        if self._made is None:
            self._made = Engine(self._options, self._context, self._communicator)
            self._made.layer._set_coefficients(self._coefficients)
        return self._made

    def _tensors(self) -> list[Tensor]:
        """Return parameters and buffers in the library's order, as they are now."""
        return [functools.reduce(getattr, name.split("."), self) for name in self._names]  # type: ignore[misc]

    @property
    def layer(self) -> Layer:
        """The layer itself, over the module's memory: to load and save files, prepare, move biases.

        What it writes into the parameters, torch's version counters do not see.
        """
        with self._engine.turn:
            self._engine.hold(self._tensors())
        return self._engine.layer

    def reset_parameters(self) -> None:
        """Give the parameters the values of a new layer with this seed, and the buffers theirs."""
        self._engine.initialize(self._tensors())

    def prepare(self, form: words.Prepared = "f32") -> None:
        """Pack the experts' weights for the calls to come, see :meth:`libmoe.Layer.prepare`.

        Afterwards a call is refused when a matrix of experts has changed since; ``train()`` lets go of the
        copy, but of few bits of matrices that want no gradient: these are frozen, and all else is trained
        over them.
        """
        self._engine.prepare(form, self._tensors())

    def train(self, mode: bool = True) -> MoE:
        """Set whether dropout and exploration act; True lets go of prepared weights, but of frozen ones."""
        made = self._made
        if mode and made is not None and made.is_prepared and not made.trains_over(self._tensors()):
            self.prepare("none")
        return super().train(mode)

    def forward(
        self,
        x: Tensor,
        *,
        report: bool = False,
        step: int | None = None,
        expert_weights: Tensor | None = None,
        valid_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        token_ids: Tensor | None = None,
        expert_indices: Tensor | None = None,
        global_counts: Tensor | None = None,
        noise: Tensor | None = None,
        jitter: Tensor | None = None,
        second: Tensor | None = None,
        sequence_length: int = 0,
        record: Routing | None = None,
        replay: Routing | None = None,
        memory_limit: int | str = 0,
        tape_policy: words.TapePolicy = "auto",
        chunk_tokens: int = 0,
    ) -> Any:
        """Return y = layer(x), or (y, report).

        Parameters
        ----------
        x : Tensor, [..., H]
            Other floating types than the layer's ``io_dtype`` are converted, and y comes back in x's.
        report : bool
            Whether to return a :class:`Report` too.  Without it ``aux_loss`` is no part of the objective.
        step : int, optional
            Which numbers dropout and exploration draw in training.  By default torch's generator gives it:
            ``torch.manual_seed`` fixes it, and a checkpointed call draws the same numbers again.  To be given
            with ``warmup_steps``, and where a layer over ranks draws numbers.
        expert_weights : Tensor, [..., K], optional
            Weights of the given experts; autograd flows to them.
        valid_mask, loss_mask, token_ids, expert_indices, global_counts, noise, jitter, second : Tensor
            As of :meth:`libmoe.Layer.forward`, optional, and so are all others.

        Returns
        -------
        Tensor, or (Tensor, Report)
        """
        if torch.compiler.is_compiling():
            tensors = (valid_mask, loss_mask, token_ids, expert_indices, global_counts, noise, jitter, second)
            given = (*tensors, record, replay)
            numbers = report or sequence_length or memory_limit or chunk_tokens or tape_policy != "auto"
            if not numbers and all(each is None for each in given) and self._is_traceable(step):
                return self._traced(x, expert_weights, step)
        return self._called(dict(locals()))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the library is called through ctypes
    def _called(self, arguments: dict[str, Any]) -> Any:
        """Return what a call returns; the arguments are forward's by name."""
        given = {name: arguments[name] for name in _PLAIN}
        for name, dtype in _ARRAYS.items():
            if arguments[name] is not None:
                given[name] = taken(name, arguments[name], dtype)
        refuse_transforms()
        given |= {"training": self.training, "step": self._step(arguments["step"])}
        x = require_tensor("x", arguments["x"])
        if not x.is_floating_point():
            raise ArgumentTypeError(f"x: expected floating-point numbers, got {x.dtype}; use x.float()")
        return self._run(x, arguments["expert_weights"], given, arguments["report"])

    def _run(self, x: Tensor, weights: Tensor | None, given: dict[str, Any], reported: bool) -> Any:
        if weights is not None:
            weights = require_tensor("expert_weights", weights).to(torch.float32).contiguous()
        tensors = self._tensors()
        inputs = [x, *tensors] if weights is None else [x, weights, *tensors]
        wanted = any(tensor.requires_grad for tensor in inputs)
        # Over ranks all go back where one does.
        taped = torch.is_grad_enabled() and (wanted or self._engine.is_spread and self._engine.trainable)
        if taped and not self._engine.trainable:
            raise BadStateError(
                "MoE: a layer that is inference_only has no backward; call it under torch.no_grad(), or make "
                "it without inference_only"
            )
        call = Call(self._engine, given, taped, reported, [])
        own = x.to(self._io_dtype).contiguous()
        if taped and not wanted:
            own = own.detach().requires_grad_()
        results = computed(call, own, weights, tensors)
        y = results[0] if isinstance(results, tuple) else results
        y = y.to(x.dtype)
        return (y, report_of(call.told[0], *results[1:])) if reported else y

    def _is_traceable(self, step: int | None) -> bool:
        """Whether the operator of a call can do all of it."""
        counts = self.training and step is None and self._options.get("warmup_steps")
        return not counts and not self._options.get("inference_only") and self._communicator is None

    def _traced(self, x: Tensor, weights: Tensor | None, step: int | None) -> Tensor:
        """Return y as the operator that torch.compile sees."""
        tensors = self._tensors()
        saves = torch.is_grad_enabled() and (
            x.requires_grad
            or (weights is not None and weights.requires_grad)
            or any(tensor.requires_grad for tensor in tensors)
        )
        if step is None and self.training:
            drawn = torch.randint(_STEPS, (), device="cpu")
        else:
            drawn = torch.tensor(step or 0, dtype=torch.int64, device="cpu")
        if weights is not None:
            weights = weights.to(torch.float32).contiguous()
        given = x.to(self._io_dtype).contiguous()
        y: Tensor = layer_op(given, weights, drawn, tensors, self._number, self.training, saves)[0]
        return y.to(x.dtype)

    @property
    def _io_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._options.get("io_dtype") == "bf16" else torch.float32

    def _step(self, step: int | None) -> int:
        if step is not None or not self.training:
            return step or 0
        if self._options.get("warmup_steps"):
            raise InvalidArgumentError(
                "step: a layer with warmup_steps counts steps; give moe(x, step=...) in training"
            )
        if self._communicator is not None:  # whose ranks have a generator each
            if _draws(self._options):
                raise InvalidArgumentError(
                    "step: over ranks all draw by the same number; give moe(x, step=...) in training"
                )
            return 0
        return int(torch.randint(_STEPS, (), device="cpu"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MoE:
        """Follow where torch moves modules to, and what it converts them to.

        A conversion makes the layer anew, with matrices of the other type.
        """
        options, engine = options_after(fn, self._options), self._engine
        if options != self._options:
            engine = Engine(options, self._context, self._communicator)
            engine.layer._set_coefficients(self._engine.layer._coefficients())
        wanted = {}
        for tensor, place in zip(self._tensors(), engine.places):
            wanted[id(tensor)] = place.dtype
            if tensor.is_leaf and tensor.grad is not None:
                wanted[id(tensor.grad)] = place.dtype
        super()._apply(keeping(fn, wanted), recurse)  # type: ignore[no-untyped-call]
        self._options, self._made = options, engine
        return self

    def __repr__(self) -> str:
        """Say which arguments are not the defaults."""
        return described(self, named({k: v for k, v in self._options.items() if _KNOWN[k].default is not v}))

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: all but the layer and the context, which are of a process."""
        if self._communicator is not None:
            raise BadStateError(
                "MoE: has a part of the experts of several ranks, and cannot be pickled; save state_dict() "
                "on every rank"
            )
        return self._state()

    def _state(self) -> dict[str, Any]:
        kept = self._coefficients if self._made is None else self._made.layer._coefficients()
        of_process = dict.fromkeys(("_made", "_context", "_communicator"))
        return {**self.__dict__, **of_process, "_coefficients": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take another number than the module had of which this is a copy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = registered(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> MoE:
        """Return a module with values of its own, in the same context."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self._state(), memo))
        made._context, made._communicator = self._context, self._communicator
        return made


def _draws(options: dict[str, Any]) -> bool:
    """Whether a layer draws random numbers in training."""
    own = any(options.get(name) for name in ("dropout", "jitter", "router_dropout", "random_second"))
    groups = any(group.get("dropout") for group in options.get("expert_groups") or ())
    return own or groups or options.get("noise", "none") != "none" or options.get("drop") == "random"


def _require_experts(communicator: Communicator | None, options: dict[str, Any]) -> None:
    """Refuse ranks without experts, of which there is nothing to tell whether they are frozen."""
    if communicator is None or options.get("strategy", "exclusive") != "exclusive":
        return
    n_experts, counts = options["n_experts"], options.get("experts_per_rank")
    if n_experts < communicator.size if counts is None else 0 in list(counts):
        raise InvalidArgumentError(
            f"communicator: of {communicator.size} ranks each needs one of the {n_experts} experts at least"
        )


_PLAIN = ("sequence_length", "record", "replay", "memory_limit", "tape_policy", "chunk_tokens")
