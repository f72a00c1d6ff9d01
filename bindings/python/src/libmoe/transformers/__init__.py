"""libmoe for transformers: importing this registers the experts implementation ``"libmoe"``.

::

    import libmoe.transformers
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="libmoe")

or ``model.set_experts_implementation("libmoe")``.  Nothing else changes: the model's own code routes, and
training, generation, PEFT and the Trainer go on as before.  What libmoe has not, falls back to transformers'
own ``grouped_mm`` with one warning that says why.

Over several processes: ``distributed_config=DistributedConfig(tp_size=2, ep_size=2,
ep_implementation="libmoe")``.
"""

try:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as _FUNCTIONS
except ImportError as error:
    raise ImportError(
        "libmoe.transformers needs PyTorch and transformers 5.24 or later: pip install 'libmoe[transformers]'"
    ) from error

from transformers.utils.import_utils import is_torch_distributed_available

from .forward import experts_forward
from .prepare import prepare
from .quantize import QuantizationConfig, quantize
from .replace import replace

__all__ = ["QuantizationConfig", "experts_forward", "prepare", "quantize", "replace"]

_FUNCTIONS.register("libmoe", experts_forward)

if is_torch_distributed_available():
    from transformers.distributed.expert_parallel import EPImplementationInterface

    from .expert_parallel import LibmoeEP

    EPImplementationInterface.register("libmoe", LibmoeEP)
