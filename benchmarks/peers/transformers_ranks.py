"""The Qwen3-MoE block of transformers over processes: its own expert parallelism, over gloo.

Each process has half of the tokens and half of the experts, all have the gate, whose gradients are added up.
 The process that is started starts the others, as many as the work has threads.
"""
# Types are checked where PyTorch and transformers need not be installed.
# mypy: disable-error-code="import-not-found, misc, attr-defined, no-untyped-call"

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist
import transformers
from measure import turn
from protocol import Array, Work, serve
from qwen_block import empty_block
from torch.distributed.device_mesh import init_device_mesh
from transformers.distributed.expert_parallel import AllToAllEP

WAYS = ("eager", "grouped_mm")


class Part:
    """One process's tokens and experts."""

    def __init__(self, work: Work) -> None:
        rank, size = dist.get_rank(), dist.get_world_size()
        mesh = init_device_mesh("cpu", (size, 1), mesh_dim_names=("ep", "tp"))
        self.block = make_block(work, rank, size)
        self.block.experts.forward = AllToAllEP(self.block.experts, mesh["ep"], mesh["tp"])
        tokens = slice(rank * work.shape.tokens // size, (rank + 1) * work.shape.tokens // size)
        self.x = torch.from_numpy(work.load("x")[tokens]).unsqueeze(0).requires_grad_()  # [1,T / size,H]
        self.dy = torch.from_numpy(work.load("dy")[tokens]).unsqueeze(0)

    def run(self) -> tuple[Any, Any]:
        """Go forwards and backwards; the gate's gradient is that of all tokens."""
        self.x.grad = self.block.gate.weight.grad = None
        y = self.block(self.x)
        y.backward(self.dy)
        dist.all_reduce(self.block.gate.weight.grad)
        return y.detach()[0], self.x.grad[0]


def make_block(work: Work, rank: int, size: int) -> Any:
    """Return the block with a rank's share of the experts."""
    block: Any = empty_block(work.shape)
    local = work.shape.experts // size

    def own(name: str) -> Any:
        return torch.from_numpy(work.load(f"experts.{name}.weight")[rank * local : (rank + 1) * local])

    block.experts.num_experts = local
    parameters = {
        "gate_up_proj": torch.cat([own("gate"), own("up")], dim=1),
        "down_proj": own("down"),
    }
    for name, values in parameters.items():
        setattr(block.experts, name, torch.nn.Parameter(values))
    block.gate.weight = torch.nn.Parameter(torch.from_numpy(work.load("router.weight")))
    return block


def all_of(tensor: Any) -> Array:
    """Return the parts of all processes, on the first of them."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    whole: Array = torch.cat(parts).numpy()
    return whole


def told(word: int) -> int:
    """Return what the first process says; the others wait for it asleep."""
    tensor = torch.tensor([word])
    dist.broadcast(tensor, 0)
    return int(tensor.item())


def main() -> None:
    """Serve in the first process; follow in the others."""
    work = Work.of(sys.argv[1:])
    rank, others = int(os.environ.get("RANK", 0)), []
    store = os.environ.get("STORE", f"{work.folder.resolve()}/store-{os.getpid()}")
    if rank == 0:
        for other in range(1, work.threads):
            environment = {**os.environ, "RANK": str(other), "STORE": store}
            others.append(
                subprocess.Popen([sys.executable, *sys.argv], env=environment, stdin=subprocess.DEVNULL)
            )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=work.threads)
    part = Part(work)

    def seconds(way: str) -> float:
        part.block.experts.config._experts_implementation = way
        return statistics.median(turn(lambda: (told(1), part.run())[1])) if rank == 0 else 0.0

    def follow() -> None:
        while told(0) == 1:
            part.run()

    times = []
    for way in WAYS:
        times.append(seconds(way))
        if rank == 0:
            told(0)
        else:
            follow()
    best = told(times.index(min(times)))
    part.block.experts.config._experts_implementation = WAYS[best]
    answers = [all_of(tensor) for tensor in part.run()]
    if rank > 0:
        follow()
    else:
        unanswered = [(answers[0], answers[1])]

        def run() -> tuple[Array, Array]:
            if unanswered:
                return unanswered.pop()
            told(1)
            y, dx = part.run()
            return y.numpy(), dx.numpy()

        serve(work, f"transformers {transformers.__version__}, {WAYS[best]}", run)
        told(0)
        for process in others:
            process.wait()
    dist.destroy_process_group()


main()
