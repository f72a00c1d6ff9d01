"""Stop, load and go on: the bits are those of a run that was never stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 a type that numpy and safetensors know)
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import libmoe
from arrays import normal
from libmoe import words

H, WIDTH, E, K = 8, 12, 6, 2

# All that a layer remembers from call to call.
LAYERS: list[dict[str, Any]] = [
    {"dropout": 0.2, "noise": "learned", "jitter": 0.1, "seed": 5, "weight_dtype": "bf16"},
    {"router_batch_norm": True, "warmup_steps": 9, "selection_bias": True, "seed": 6},
]


@dataclass
class Run:
    """Two layers one after the other, a table of the user's own, two optimisers."""

    layers: list[libmoe.Layer]
    table: libmoe.Parameter
    optimizers: list[libmoe.AdamW | libmoe.SGD]
    statistics: list[libmoe.Statistics]
    step: int = 0

    @classmethod
    def begin(cls, seed: int = 0, state_dtype: words.StateDType = "f32") -> Run:
        layers = [libmoe.Layer(H, WIDTH, E, K, **options) for options in LAYERS]
        for n, layer in enumerate(layers):  # other values than those a new layer has
            for name, parameter in layer.parameters.items():
                if parameter.data.dtype == np.float32:
                    parameter.data[...] += 0.1 * normal(*parameter.data.shape, seed=seed + n + len(name))
        table = libmoe.Parameter(normal(10, H, seed=seed), name="table")
        adamw = libmoe.AdamW(
            [*layers[0].parameters.values(), table],
            learning_rate=0.01,
            groups=[{"parameters": [table], "learning_rate": 0.005 + seed, "weight_decay": 0.2 + seed}],
            state_dtype=state_dtype,
            seed=seed + 1,
        )
        sgd = libmoe.SGD(layers[1].parameters, learning_rate=1e-4, momentum=0.9, state_dtype=state_dtype)
        return cls(layers, table, [adamw, sgd], [libmoe.Statistics(E)])

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            x = self.table.data + normal(10, H, seed=1000 + self.step)
            tapes = [layer.tape() for layer in self.layers]
            first = self.layers[0].forward(x, tape=tapes[0], training=True, step=self.step)
            second = self.layers[1].forward(first.y, tape=tapes[1], training=True, step=self.step)
            middle = self.layers[1].backward(tapes[1], dy=second.y)
            assert middle is not None
            dx = self.layers[0].backward(tapes[0], dy=middle)
            assert dx is not None
            self.table.grad[...] = dx
            self.statistics[0].add(second.report)
            for optimizer in self.optimizers:
                optimizer.learning_rate *= 0.9
                optimizer.step()
            self.layers[1].update_selection_bias(second.report.tokens_per_expert, 0.01)
            for layer in self.layers:
                layer.zero_grad()
            self.step += 1

    def parts(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "optimizers": self.optimizers,
            "statistics": self.statistics,
            "parameters": [self.table],
        }

    def save(self, path: Path) -> None:
        libmoe.save_training(path, step=self.step, **self.parts())

    def load(self, path: Path) -> None:
        self.step = libmoe.load_training(path, **self.parts())

    def bits(self) -> dict[str, bytes]:
        found = {"table": self.table.data.tobytes(), "step": str(self.step).encode()}
        for n, layer in enumerate(self.layers):
            found |= {f"{n}.{name}": array.tobytes() for name, array in layer.state_dict().items()}
        for n, optimizer in enumerate(self.optimizers):
            found[f"{n}.learning_rate"] = str(optimizer.learning_rate).encode()
        summary = self.statistics[0].read()
        found["statistics"] = str(summary).encode()
        return found


@pytest.mark.parametrize("state_dtype", ["f32", "bf16"])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    state_dtype: words.StateDType, tmp_path: Path
) -> None:
    uninterrupted = Run.begin(state_dtype=state_dtype)
    uninterrupted.advance(7)

    stopped = Run.begin(state_dtype=state_dtype)
    stopped.advance(3)
    stopped.save(tmp_path / "state")
    halfway = stopped.bits()
    stopped.advance(1)  # saving has changed nothing, and what follows does not change the file

    resumed = Run.begin(seed=77, state_dtype=state_dtype)  # seed and groups are the file's, too
    resumed.advance(2)
    resumed.load(tmp_path / "state")
    assert resumed.step == 3
    assert resumed.bits() == halfway
    resumed.advance(4)
    assert resumed.bits() == uninterrupted.bits()

    # And the test can tell: without the optimisers' moments the bits are others.
    forgetful = Run.begin(state_dtype=state_dtype)
    forgetful.advance(3)
    fresh = Run.begin(state_dtype=state_dtype)
    for ours, theirs in zip(fresh.layers, forgetful.layers):  # noqa: B905
        ours.load_state_dict(theirs.state_dict())
    fresh.table.data[...] = forgetful.table.data
    fresh.step = 3
    fresh.advance(4)
    assert fresh.bits() != uninterrupted.bits()


def test_the_file_is_what_the_header_says(tmp_path: Path) -> None:
    run = Run.begin()
    run.advance(2)
    run.save(tmp_path / "state")
    found = load_file(tmp_path / "state")
    names = {"step", "tensors.0"}
    for n, layer in enumerate(run.layers):
        names |= {f"layers.{n}.{name}" for name in (*layer.parameters, *layer.buffers, "seed")}
    counts = [len(run.layers[0].parameters) + 1, len(run.layers[1].parameters)]
    names |= {f"optimizers.{n}.{i}.moments" for n in range(2) for i in range(counts[n])}
    names |= {"optimizers.0.adamw", "optimizers.1.sgd"}
    names |= {f"optimizers.{n}.{part}" for n in range(2) for part in ("groups", "random")}
    halves = [i for i, p in enumerate(run.layers[0].parameters.values()) if p.data.dtype == np.uint16]
    names |= {f"optimizers.0.{i}.master" for i in halves}
    names |= {f"statistics.0.{part}" for part in ("counts", "dropped", "probability", "tokens", "sums")}
    assert found.keys() == names
    assert found["step"] == [2] and found["layers.0.seed"] == [5] and found["layers.1.seed"] == [6]
    np.testing.assert_allclose(
        found["optimizers.0.adamw"], [0.0081, 0.9, 0.999, 1e-8, 0.01, 0.9**2, 0.999**2], rtol=1e-12
    )
    np.testing.assert_allclose(found["optimizers.1.sgd"], [0.81e-4, 0.9, 0, 0, 0, 0, 0], rtol=1e-12)
    np.testing.assert_array_equal(found["optimizers.0.random"], [1, 2])  # seed, steps
    np.testing.assert_array_equal(found["optimizers.0.groups"], [[1, 0.01]] * (counts[0] - 1) + [[0.5, 0.2]])
    assert (found["tensors.0"] == run.table.data).all()
    assert found[f"optimizers.0.{counts[0] - 1}.moments"].shape == (2, 10 * H)
    assert found["optimizers.1.0.moments"].shape == (1, E * H)
    index = list(run.layers[0].parameters).index("experts.up.weight")
    assert found[f"optimizers.0.{index}.moments"].shape == (2, E * WIDTH * H)
    master = found[f"optimizers.0.{index}.master"]
    stored = run.layers[0].parameters["experts.up.weight"].data
    assert (libmoe.to_bfloat16(master) == stored.reshape(-1)).all()


def test_moments_are_loaded_into_their_own_type(tmp_path: Path) -> None:
    Run.begin().save(tmp_path / "state")
    with pytest.raises(libmoe.InvalidArgumentError, match="moments: F32 in the file, BF16 here"):
        Run.begin(state_dtype="bf16").load(tmp_path / "state")


def changed(tensors: dict[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    kept = {key: array for key, array in tensors.items() if key != name}
    assert len(kept) < len(tensors)
    return kept


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step", None, "step: the training state has it"),
        ("layers.1.router.norm.running_mean", None, "running_mean"),
        (
            "layers.1.router.norm.running_mean",
            np.zeros(H + 1, np.float32),
            rf"running_mean: \[{H + 1}\] in the file, \[{H}\] here",
        ),
        (
            "layers.0.experts.up.weight",
            np.zeros((E, WIDTH, H), np.float32),
            "experts.up.weight: F32 in the file",
        ),
        ("layers.0.seed", np.array([4], np.uint64), "seed 4 in the file, 5 here"),
        ("optimizers.0.adamw", None, "optimizers.0.adamw"),
        ("optimizers.0.adamw", np.full(7, np.nan), "nan is none of its numbers"),
        ("optimizers.0.adamw", np.array([0.1, 1, 0.9, 1e-8, 0, 0.5, 0.5]), "1 is none of its numbers"),
        ("optimizers.0.adamw", np.array([0.1, 0.9, 0.9, 0, 0, 0.5, 0.5]), "0 is none of its numbers"),
        ("optimizers.0.adamw", np.array([0.1, 0.9, 0.9, 1e-8, 0, 2, 0.5]), "2 is none of its numbers"),
        ("optimizers.1.sgd", np.full(7, -1.0), "-1 is none of its numbers"),
        ("optimizers.1.sgd", np.array([0.1, 1, 0, 0, 0, 0, 0]), "1 is none of its numbers"),
        (
            "optimizers.0.0.moments",
            np.zeros((1, E * H), np.float32),
            rf"0.0.moments: \[1, {E * H}\] in the file, \[2, {E * H}\] here",
        ),
        ("optimizers.1.groups", np.full((8, 2), np.inf), "optimizers.1.groups: inf is not a number"),
        ("optimizers.1.groups", np.full((8, 2), -2.0), "optimizers.1.groups: -2 is not a number"),
        ("optimizers.0.random", np.array([1, 2**56], np.uint64), "72057594037927936 steps are too many"),
        ("statistics.0.counts", np.full(E, -1, np.int64), "statistics.0.counts: -1 is negative"),
        ("statistics.0.tokens", np.full(2, -5, np.int64), "-5 is negative"),
        (
            "layers.2.router.weight",
            np.zeros((E, H), np.float32),
            "the file has it, the training state does not",
        ),
    ],
)
def test_another_state_changes_nothing(
    name: str, value: NDArray[Any] | None, message: str, tmp_path: Path
) -> None:
    run = Run.begin()
    run.advance(2)
    run.save(tmp_path / "state")
    tensors = load_file(tmp_path / "state")
    if value is None:
        tensors = changed(tensors, name)
    else:
        tensors[name] = value
    save_file(tensors, tmp_path / "other")
    other = Run.begin(seed=3)
    other.advance(1)
    before = other.bits()
    with pytest.raises(libmoe.InvalidArgumentError, match=message):
        other.load(tmp_path / "other")
    assert other.bits() == before


def test_parts_by_themselves(tmp_path: Path) -> None:
    libmoe.save_training(tmp_path / "a", step=2**64 - 1)
    assert libmoe.load_training(tmp_path / "a") == 2**64 - 1
    layer = libmoe.Layer(H, WIDTH, E, K)
    with pytest.raises(libmoe.InvalidArgumentError, match="layers.0.seed"):
        libmoe.load_training(tmp_path / "a", layers=[layer])
    layer.close()
    with pytest.raises(libmoe.BadStateError):
        libmoe.save_training(tmp_path / "a", step=0, layers=[layer])
    with pytest.raises(libmoe.FileError, match="No such file"):
        libmoe.load_training(tmp_path / "none")


def test_an_optimiser_of_the_users_own_is_the_rule_it_derives_from(tmp_path: Path) -> None:
    """What was saved names the rule; the rate and momentum that are read are those that were saved."""

    class Mine(libmoe.SGD):
        """Another name."""

    parameter = libmoe.Parameter(normal(3))
    one, other = Mine([parameter], 0.5, 0.25), Mine([parameter], 0.1, 0.9)
    one.momentum = 0.75
    libmoe.save_training(tmp_path / "state", step=1, optimizers=[one])
    libmoe.load_training(tmp_path / "state", optimizers=[other])
    assert (other.learning_rate, other.momentum) == (0.5, 0.75)


def test_rates_are_read_of_optimisers_that_an_iterator_gives(tmp_path: Path) -> None:
    parameter = libmoe.Parameter(normal(3))
    one, other = libmoe.SGD([parameter], 0.5, 0.25), libmoe.SGD([parameter], 0.1, 0.9)
    libmoe.save_training(tmp_path / "state", step=1, optimizers=[one])
    given: Any = iter([other])
    libmoe.load_training(tmp_path / "state", optimizers=given)
    assert (other.learning_rate, other.momentum) == (0.5, 0.25)
