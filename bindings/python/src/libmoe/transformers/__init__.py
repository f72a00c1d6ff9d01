"""libmoe for transformers: importing this registers the experts implementation ``"libmoe"``.

::

    import libmoe.transformers
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="libmoe")

or ``model.set_experts_implementation("libmoe")``.  Nothing else changes: the model's own code routes, and
training, generation, PEFT and the Trainer go on as before.  What libmoe has not, falls back to transformers'
own ``grouped_mm`` with one warning that says why.
"""

try:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as _FUNCTIONS
except ImportError as error:
    raise ImportError(
        "libmoe.transformers needs PyTorch and transformers 5.24 or later: pip install 'libmoe[transformers]'"
    ) from error

from .forward import experts_forward
from .prepare import prepare
from .quantize import QuantizationConfig, quantize
from .replace import replace

__all__ = ["QuantizationConfig", "experts_forward", "prepare", "quantize", "replace"]

_FUNCTIONS.register("libmoe", experts_forward)
