"""Experts of few bits, by one call or by ``from_pretrained(..., quantization_config=...)``."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .. import words
from .._native import check
from ..errors import InvalidArgumentError
from ..experts import FORMS
from .prepare import prepare
from .replace import is_replaceable, replace

_METHOD = "libmoe"
_OTHERS = ("f32", "bf16", "stored", "stored_a8", "stored_a16")  # not of few bits, or of files alone


def quantize(model: nn.Module, form: words.Prepared = "int4") -> nn.Module:
    """Keep the weights of a model's experts in few bits alone, computed by libmoe, and return the model.

    The experts implementation becomes ``"libmoe"`` (families that have none are given to :func:`replace`),
    the weights are packed, and torch's own copies go, module by module.  Adapters can be trained over them.

    Parameters
    ----------
    model : Module
        Of transformers; it is in ``eval()`` afterwards.
    form : {"int4", "int4_a8", "int8", "int8_a8", "int4_g64", ...}
        See :meth:`libmoe.Layer.prepare`; ``_a8`` rounds tokens to int8 as well, ``_a16`` to
        bfloat16, which is faster for many.

    Raises
    ------
    InvalidArgumentError
        The model has no experts that libmoe computes.
    NotFiniteError
        A weight is not finite.

    Examples
    --------
    ::

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        libmoe.transformers.quantize(model, "int4")
    """
    _require_few_bits(form)
    choose: Any = getattr(model, "set_experts_implementation", None)
    if choose is not None:
        choose("libmoe")
    if any(map(is_replaceable, model.modules())):
        replace(model)
    prepare(model.eval(), form=form, release=True)
    return model


def _require_few_bits(form: Any) -> None:
    check.choice("form", form, {word: number for word, number in FORMS.items() if word not in _OTHERS})


@register_quantization_config(_METHOD)
class QuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc, unused-ignore]
    """What ``from_pretrained(folder, quantization_config=...)`` makes of a model's experts.

    That is what :func:`quantize` does.  Weights are read as they are stored, and packed when all are there.

    Examples
    --------
    ::

        few_bits = libmoe.transformers.QuantizationConfig("int4")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=few_bits)
    """

    def __init__(self, form: words.Prepared = "int4", **more: Any) -> None:
        """Take what :func:`quantize` takes; ``more`` is what config.json has beside it."""
        self.quant_method = more.pop("quant_method", _METHOD)
        if more:
            raise InvalidArgumentError(
                f"quantization_config: has no {next(iter(more))!r}; it has a form alone"
            )
        _require_few_bits(form)
        self.form = form


@register_quantizer(_METHOD)
class Quantizer(HfQuantizer):  # type: ignore[misc, unused-ignore]
    """What transformers calls for such a configuration."""

    quantization_config: QuantizationConfig

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        return quantize(model, self.quantization_config.form)

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Whether ``save_pretrained`` has anything to save."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Whether adapters may be trained over the weights."""
        return True
