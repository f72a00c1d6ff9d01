"""What torch does to modules: copies, files, other memory, other processes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import libmoe
import libmoe.torch


def made(**more: Any) -> libmoe.torch.MoE:
    return libmoe.torch.MoE(16, 24, 4, 2, expert_kind="gated", selection_bias=True, **more)


def saved(module: torch.nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved}


@pytest.mark.parametrize("way", WAYS)
def test_copies_have_the_values_and_memory_of_their_own(way: str) -> None:
    moe = torch.nn.Sequential(made(), torch.nn.Linear(16, 3))
    x = torch.randn(7, 16)
    with torch.no_grad():
        moe[0].router.selection_bias += torch.randn(4)
    moe(x).sum().backward()
    twin = WAYS[way](moe)
    torch.testing.assert_close(twin(x), moe(x), rtol=0, atol=0)
    twin(x).sum().backward()
    torch.testing.assert_close(twin[0].experts.up.weight.grad, moe[0].experts.up.weight.grad)
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert not torch.equal(twin(x), moe(x))
    assert repr(twin) == repr(moe)


def test_copies_keep_the_context_and_the_mode() -> None:
    context = libmoe.Context(1)
    moe = made(context=context).eval()
    moe.experts.requires_grad_(False)
    twin = copy.deepcopy(moe)
    before = context.memory()[0]
    twin(torch.randn(3, 16))
    assert context.memory()[0] > before
    assert not twin.training and not twin.experts.up.weight.requires_grad


@pytest.mark.parametrize("way", WAYS)
def test_copies_keep_coefficients_that_were_set(way: str) -> None:
    moe, x = libmoe.torch.MoE(16, 24, 4, 2, losses={"switch": 0.1}), torch.randn(9, 16)
    moe.layer.set_loss_coefficient(0, 5.0)
    wanted = moe(x, report=True)[1].aux_loss
    assert wanted > libmoe.torch.MoE(16, 24, 4, 2, losses={"switch": 0.1})(x, report=True)[1].aux_loss + 1
    for copied in (WAYS[way](moe), WAYS[way](WAYS[way](moe))):
        assert copied(x, report=True)[1].aux_loss == wanted


@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts(assign: bool, tmp_path: Path) -> None:
    moe, other = made(seed=1), made(seed=2)
    x = torch.randn(7, 16)
    assert not torch.equal(moe(x), other(x))
    other.load_state_dict({k: v.clone() for k, v in moe.state_dict().items()}, assign=assign)
    torch.testing.assert_close(other(x), moe(x), rtol=0, atol=0)
    other(x).sum().backward()
    torch.optim.AdamW(other.parameters(), fused=True).step()
    assert not torch.equal(moe(x), other(x))
    save_file(moe.state_dict(), tmp_path / "moe.safetensors")
    layer = libmoe.Layer(16, 24, 4, 2, expert_kind="gated", selection_bias=True)
    layer.load(tmp_path / "moe.safetensors")
    torch.testing.assert_close(torch.from_numpy(layer(x.numpy())), moe(x), rtol=0, atol=0)
    other.layer.load(tmp_path / "moe.safetensors")
    torch.testing.assert_close(other(x), moe(x), rtol=0, atol=0)


def test_memory_that_comes_later() -> None:
    with torch.device("meta"):
        moe = made()
    x = torch.randn(7, 16)
    with pytest.raises(libmoe.BadStateError, match="assign=True"):
        moe(x)
    other = copy.deepcopy(moe)
    moe.load_state_dict(made(seed=3).state_dict(), assign=True)
    torch.testing.assert_close(moe(x), made(seed=3)(x), rtol=0, atol=0)
    other.to_empty(device="cpu")
    other.reset_parameters()
    torch.testing.assert_close(other(x), made()(x), rtol=0, atol=0)


def test_parameters_that_are_put_elsewhere() -> None:
    moe, x = made(), torch.randn(7, 16)
    y = moe(x)
    moe.share_memory()
    assert moe.experts.up.weight.is_shared()
    assert torch.equal(moe(x), y)
    moe.experts.up.weight.data = moe.experts.up.weight.data * 2
    twice = made()
    with torch.no_grad():
        twice.experts.up.weight *= 2
    assert torch.equal(moe(x), twice(x))
    moe.experts.up.weight.data = torch.zeros(4, 24, 15)
    with pytest.raises(
        libmoe.InvalidArgumentError, match=r"experts.up.weight: expected torch.float32 \[4, 24, 16\]"
    ):
        moe(x)


def test_a_parametrized_weight_gets_its_gradient() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    moe, x = made(), torch.randn(7, 16)
    plain = copy.deepcopy(moe)
    torch.nn.utils.parametrize.register_parametrization(moe.experts.up, "weight", Doubled())
    with torch.no_grad():
        plain.experts.up.weight *= 2
    plain(x).square().sum().backward()
    (moe(x).square().sum() + moe(x).square().sum()).backward()
    grad = moe.experts.up.parametrizations.weight.original.grad
    torch.testing.assert_close(grad, 4 * plain.experts.up.weight.grad)


MOVES: dict[str, Any] = {
    "cuda": lambda m: m.to("cuda"),
    "cuda()": lambda m: m.cuda(),
    "xpu": lambda m: m.to("xpu"),
    "complex": lambda m: m.to(torch.complex64),
    "within another": lambda m: torch.nn.Sequential(m).to("cuda"),
}


@pytest.mark.parametrize("move", MOVES)
def test_where_there_is_nothing(move: str) -> None:
    moe, x = made(), torch.randn(3, 16)
    y = moe(x)
    cure = r"moe\(x.cpu\(\)\)|use .float\(\)"
    with pytest.raises(
        libmoe.InvalidArgumentError, match=f"libmoe computes (on the CPU|in float32).*({cure})"
    ):
        MOVES[move](moe)
    assert torch.equal(moe(x), y)
    assert torch.equal(moe.float().cpu().to("cpu")(x), y)


TYPES: dict[str, tuple[Any, torch.dtype, torch.dtype]] = {  # the type of matrices, and that of x within
    "bfloat16": (lambda m: m.bfloat16(), torch.bfloat16, torch.bfloat16),
    "to bfloat16": (lambda m: m.to(torch.bfloat16), torch.bfloat16, torch.bfloat16),
    "half": (lambda m: m.half(), torch.float16, torch.float32),
    "float": (lambda m: m.float(), torch.float32, torch.float32),
    "and back": (lambda m: m.bfloat16().float(), torch.float32, torch.float32),
}


@pytest.mark.parametrize("of", ["f32", "bf16"])
@pytest.mark.parametrize("how", TYPES)
def test_a_conversion_makes_the_layer_anew(how: str, of: Any) -> None:
    """The whole net is of the type, and computes what a layer made so computes with the same values."""
    convert, dtype, within = TYPES[how]
    moe = made(weight_dtype=of, losses={"switch": 0.1})
    moe.layer.set_loss_coefficient(0, 5.0)
    with torch.no_grad():
        moe.router.selection_bias += torch.randn(4)
    moe(torch.randn(5, 16)).sum().backward()
    values = {name: value.clone() for name, value in moe.state_dict().items()}
    net = torch.nn.Sequential(torch.nn.Linear(16, 16), moe, torch.nn.Linear(16, 3))
    assert convert(net) is net
    assert net[0].weight.dtype == net[2].weight.dtype == dtype
    for name, parameter in moe.named_parameters():
        matrix = name.startswith("experts.")
        assert parameter.dtype == (dtype if matrix else torch.float32), name
        assert parameter.grad is None or parameter.grad.dtype == parameter.dtype, name
        wanted = values[name].to(torch.bfloat16) if how == "and back" and matrix else values[name]
        assert torch.equal(parameter.detach(), wanted.to(parameter.dtype)), name
    words = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
    twin = made(weight_dtype=words[dtype], io_dtype=words[within], losses={"switch": 0.1})
    twin.load_state_dict(moe.state_dict())
    twin.layer.set_loss_coefficient(0, 5.0)
    x = torch.randn(9, 16).to(dtype)
    (y, report), (same, wanted) = moe(x, report=True), twin(x, report=True)
    assert y.dtype == dtype and torch.equal(y, same) and report.aux_loss == wanted.aux_loss
    net.zero_grad()
    net(x).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in net.parameters())
    assert torch.equal(copy.deepcopy(moe)(x), y)


def test_float64_keeps_the_types_with_a_warning() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(16, 16), made())
    with pytest.warns(RuntimeWarning, match="libmoe has no float64"):
        net.double()
    assert net[1].experts.up.weight.dtype == torch.float32
    assert net(torch.randn(3, 16, dtype=torch.float64)).dtype == torch.float64


def test_frozen_experts_cost_no_products_of_weights() -> None:
    """Their profile has half of the products; what is left has the same bits."""
    context = libmoe.Context(1)
    moe = libmoe.torch.MoE(
        32, 48, 4, 2, expert_kind="gated", n_shared_experts=1, expert_bias=True, context=context
    )
    x = torch.randn(64, 32, requires_grad=True)

    def products() -> tuple[float, dict[str, torch.Tensor]]:
        y = moe(x)
        inputs = [x, *(p for p in moe.parameters() if p.requires_grad)]
        with context.profile() as profile:
            made = torch.autograd.grad(y.square().sum(), inputs)
        count = sum(p.gflops * p.seconds for p in profile.phases if p.phase in ("gate_up", "down"))
        return count, {n: g for n, g in zip(["x", *_trained(moe)], made)}

    everything, gradients = products()
    for name, parameter in moe.named_parameters():
        parameter.requires_grad_(not name.startswith(("experts.", "shared.")) or "router" in name)
    frozen, left = products()
    assert frozen == pytest.approx(everything / 2)
    assert set(left) < set(gradients) and "router.weight" in left
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in left.items())
    moe.experts.down.bias.requires_grad_(True)  # one is enough for all of them
    assert products()[0] == pytest.approx(everything)


def _trained(module: torch.nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def test_two_threads_train_one_module() -> None:
    moe = made()
    xs = [torch.randn(40, 16) for _ in range(2)]

    def gradients(x: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(moe(x).square().sum(), list(moe.parameters())))

    wanted = [gradients(x) for x in xs]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda x: [gradients(x) for _ in range(10)], xs))
    for number in range(2):
        for got in found[number]:
            torch.testing.assert_close(got, wanted[number], rtol=0, atol=0)


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    """Rows that the module computes in the loader's workers."""

    def __init__(self, moe: libmoe.torch.MoE, x: torch.Tensor) -> None:
        self.moe, self.x = moe, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.moe(self.x[index : index + 1])[0]


def test_workers_of_a_loader() -> None:
    moe, x = made(), torch.randn(12, 16)
    y = moe(x).detach()  # the parent has used its threads
    loader = torch.utils.data.DataLoader(
        Rows(moe, x), batch_size=4, num_workers=2, multiprocessing_context="fork"
    )
    torch.testing.assert_close(torch.cat(list(loader)), y, rtol=0, atol=0)


DDP = """
import sys, torch, torch.distributed as dist, libmoe.torch
from torch.nn.parallel import DistributedDataParallel
rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
torch.manual_seed(0)
moe = libmoe.torch.MoE(16, 24, 4, 2, seed=rank, balance_coef=0.0, z_coef=0.0)  # rank 0's values go to all
x = torch.randn(2, 10, 16)
model = DistributedDataParallel(moe)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
alone = libmoe.torch.MoE(16, 24, 4, 2, seed=0)
other = torch.optim.SGD(alone.parameters(), 0.01)
for _ in range(3):
    with model.no_sync():
        model(x[rank]).square().sum().backward()
    model(x[rank] + 1).square().sum().backward()
    optimizer.step(); optimizer.zero_grad()
    ((alone(x).square().sum() + alone(x + 1).square().sum()) / 2).backward()
    other.step(); other.zero_grad()
for (name, p), q in zip(moe.named_parameters(), alone.parameters()):
    torch.testing.assert_close(p, q, msg=lambda text: f"{name}: {text}")
dist.destroy_process_group()
print("same")
"""


def test_two_processes_share_gradients(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DDP]
    files = [*command, "0", str(tmp_path / "meet")], [*command, "1", str(tmp_path / "meet")]
    children = [
        subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in files
    ]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert out.strip() == "same", err


def test_only_libmoe_torch_imports_torch() -> None:
    code = "import sys, libmoe, libmoe.train, libmoe.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
