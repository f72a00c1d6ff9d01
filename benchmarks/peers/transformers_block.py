"""The Qwen3-MoE block of transformers, with whichever of its ways to run experts is the fastest here."""
# Types are checked where PyTorch and transformers need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import statistics
import sys

import torch
import transformers
from measure import turn
from protocol import Array, Work, serve
from qwen_block import empty_block

WAYS = ("eager", "grouped_mm", "batched_mm")
SMALL = 64  # tokens up to which batched_mm is tried


def main() -> None:
    """Run in float32; the block is SwiGLU."""
    work = Work.of(sys.argv[1:])
    torch.set_num_threads(work.threads)
    block = make_block(work)
    x = torch.from_numpy(work.load("x")).unsqueeze(0).requires_grad_(work.backward)  # [1,T,H]
    dy = torch.from_numpy(work.load("dy")).unsqueeze(0)

    def run() -> tuple[Array, Array | None]:
        if not work.backward:
            with torch.no_grad():
                return block(x).numpy(), None
        x.grad = None
        y = block(x)
        y.backward(dy)
        return y.detach().numpy(), x.grad.numpy()

    def seconds(way: str) -> float:
        block.experts.config._experts_implementation = way
        run()
        return statistics.median(turn(run))

    # batched_mm copies the chosen experts' weights for every token.
    best = min(WAYS if work.shape.tokens <= SMALL else WAYS[:2], key=seconds)
    block.experts.config._experts_implementation = best
    serve(work, f"transformers {transformers.__version__}, {best}", run)


def make_block(work: Work) -> torch.nn.Module:
    """Return the block with the work's weights, which are not copied where it has them as they are."""
    block = empty_block(work.shape)
    halves = [
        torch.from_numpy(work.load(f"experts.{name}.weight")) for name in ("gate", "up")
    ]  # [E,I,H] each
    state = {
        "gate.weight": torch.from_numpy(work.load("router.weight")),
        "experts.gate_up_proj": torch.cat(halves, dim=1),
        "experts.down_proj": torch.from_numpy(work.load("experts.down.weight")),
    }
    block.load_state_dict(state, assign=True)
    return block.requires_grad_(work.backward)


main()
