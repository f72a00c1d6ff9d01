"""What each process of test_experts_over_ranks.py does, by the name of the test: expert_ranks.py TEST."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import libmoe
import libmoe.torch

E, H, I, K, T = 5, 24, 40, 2, 33  # noqa: E741
NAMES = ("gate_up", "down", "gate_up_bias", "down_bias")


class Whole:
    """All experts and all tokens, the same in every process."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(4)

        def values(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw)

        self.weights = dict(
            zip(NAMES, (values(E, 2 * I, H) / 4, values(E, H, I) / 4, values(E, 2 * I), values(E, H)))
        )
        self.x, self.dy = values(T, H).to(dtype), values(T, H).to(dtype)
        self.routing, ids = values(T, E).softmax(-1).topk(K)
        self.ids = ids.where(values(T, K) < 1.5, E + 3)  # some are nobody's

    def call(
        self,
        tokens: slice,
        experts: slice,
        ranks: Any = None,
        wanted: tuple[str, ...] = (*NAMES, "x", "routing"),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return y, and the leaves of which gradients may be wanted."""
        leaves = {name: value[experts].clone() for name, value in self.weights.items()}
        leaves |= {"x": self.x[tokens].clone(), "routing": self.routing[tokens].clone()}
        for name in wanted:
            leaves[name].requires_grad_()
        more = {name: leaves[name] for name in NAMES[2:]}
        given = leaves["x"], self.ids[tokens], leaves["routing"], leaves["gate_up"], leaves["down"]
        return libmoe.torch.experts(*given, **more, ranks=ranks), leaves


def own_tokens(world: libmoe.Communicator) -> slice:
    """The first rank has none, and the last one most."""
    ends = [0, *(T * rank * rank // (world.size - 1) ** 2 for rank in range(world.size))]
    return slice(ends[world.rank], ends[world.rank + 1])


def experts(world: libmoe.Communicator) -> None:
    """Values and gradients have the bits of one process."""
    ranks, mine = libmoe.ExpertRanks(world, E), own_tokens(world)
    for dtype in (torch.float32, torch.bfloat16):
        whole = Whole(dtype)
        for _ in range(2):
            y, leaves = whole.call(mine, ranks.own, ranks)
            expected, theirs = whole.call(slice(None), slice(None))
            y.backward(whole.dy[mine])
            expected.backward(whole.dy)
            assert torch.equal(y, expected[mine])
            for name, leaf in leaves.items():
                assert leaf.grad is not None and theirs[name].grad is not None
                part = theirs[name].grad[ranks.own if name in NAMES else mine]
                assert torch.equal(leaf.grad, part), name
        with torch.no_grad():
            y, _ = whole.call(mine, ranks.own, ranks)
            assert torch.equal(y, expected[mine]) and not y.requires_grad


def unwanted(world: libmoe.Communicator) -> None:
    """Who wants no gradient goes back with the others, and nobody waits for ever."""
    ranks, mine, whole = libmoe.ExpertRanks(world, E), own_tokens(world), Whole()
    y, _ = whole.call(mine, ranks.own, ranks, wanted=())
    assert not y.requires_grad
    wanted = ("x",) if world.rank == world.size - 1 else ()
    y, leaves = whole.call(mine, ranks.own, ranks, wanted)
    assert y.requires_grad
    expected, theirs = whole.call(slice(None), slice(None), wanted=("x",))
    (y * whole.dy[mine]).sum().backward()
    (expected * whole.dy).sum().backward()
    if wanted:
        assert theirs["x"].grad is not None
        assert torch.equal(leaves["x"].grad, theirs["x"].grad[mine])  # type: ignore[arg-type]
    assert leaves["down"].grad is None
    # Two calls in one graph go back in one order on all ranks.
    first, one = whole.call(mine, ranks.own, ranks)
    second, other = whole.call(mine, ranks.own, ranks)
    (second.sum() + (first.sum() if world.rank else 0 * first.sum())).backward()
    assert one["down"].grad is not None and other["down"].grad is not None


def refused(world: libmoe.Communicator) -> None:
    """Ranks of which one records and one does not are told so."""
    ranks, whole = libmoe.ExpertRanks(world, E), Whole()
    try:
        with torch.set_grad_enabled(world.rank == 0):
            whole.call(own_tokens(world), ranks.own, ranks)
    except libmoe.InvalidArgumentError as error:
        assert "rank 1 makes another call than rank 0" in str(error)
    else:
        raise AssertionError
    try:
        whole.call(own_tokens(world), ranks.own, world)
    except libmoe.ArgumentTypeError as error:
        assert "expected a libmoe.ExpertRanks" in str(error)
    else:
        raise AssertionError


def module(world: libmoe.Communicator) -> None:
    """A module trains as one of one process."""
    options: dict[str, Any] = {
        "n_experts": E,
        "top_k": K,
        "expert_kind": "gated",
        "n_shared_experts": 1,
        "seed": 3,
    }
    options |= {"activation": "silu", "losses": {"switch": 0.1}, "dropout": 0.1}
    whole, mine = Whole(), own_tokens(world)
    part, alone = libmoe.torch.MoE(H, I, **options, communicator=world), libmoe.torch.MoE(H, I, **options)
    part, experts = copy.deepcopy(part), libmoe.ExpertRanks(world, E).own
    optimizers = [torch.optim.AdamW(each.parameters(), foreach=False) for each in (part, alone)]
    for step in range(3):
        grads = []
        for moe, tokens in ((part, mine), (alone, slice(None))):
            x = whole.x[tokens].clone().requires_grad_()
            y, report = moe(x, report=True, step=step)
            ((y * whole.dy[tokens]).sum() + report.aux_loss).backward()
            grads.append((y, x.grad))
        for own, theirs in zip(*grads):
            assert torch.equal(own, theirs[mine])
        for (name, own), theirs in zip(part.named_parameters(), alone.parameters()):
            assert own.grad is not None and theirs.grad is not None
            where = experts if name.startswith("experts.") else slice(None)
            assert torch.equal(own.grad, theirs.grad[where]), name
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    # Frozen, and with x that wants a gradient on one rank alone.
    part.requires_grad_(False)
    x = whole.x[mine].clone().requires_grad_(world.rank == world.size - 1)
    try:
        part(x)
    except libmoe.InvalidArgumentError as error:
        assert "give moe(x, step=...)" in str(error)
    else:
        raise AssertionError
    part(x, step=4).sum().backward()
    with torch.no_grad():
        assert torch.equal(part.eval()(whole.x[mine]), alone.eval()(whole.x)[mine])


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    globals()[sys.argv[1]](libmoe.torch.communicator())
    dist.barrier()
    dist.destroy_process_group()
