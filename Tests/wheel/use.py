"""What a user of the wheel does, with numpy alone and no OpenBLAS: ``python use.py`` in an empty folder."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import io
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import libmoe
import libmoe.cli

# What wants more than numpy, and what that is.
EXTRAS = {"libmoe.mpi": "mpi4py", "libmoe.torch": "torch", "libmoe.transformers": "transformers"}


def the_package_is_the_installed_one() -> None:
    """The folder of a virtual environment, with the library in it."""
    package = Path(libmoe.__file__).parent
    assert package.is_relative_to(Path(sys.prefix).resolve()), package
    (library,) = (package / "lib").glob("libmoe.so*")
    assert told("--library") == str(library)
    assert told("--include-dir") == str(package / "include")
    assert told("--cmake-dir") == str(package / "lib" / "cmake" / "libmoe")
    packages = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    assert packages - {"pip", "setuptools", "wheel"} == {"libmoe", "numpy"}, packages
    headers = {path.name for path in (package / "include").iterdir()}
    assert headers >= {"moe.h", "moe_model.h", "moe.hpp"}, headers
    assert not [name for name in headers if Path(name).suffix not in (".h", ".hpp")], headers


def told(option: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            libmoe.cli.main([option])
        except SystemExit as left:
            assert not left.code
    return said.getvalue().rstrip("\n")


def every_module_is_there() -> None:
    for found in pkgutil.walk_packages(libmoe.__path__, "libmoe.", onerror=only_extras):
        if found.name == "libmoe.__main__":
            continue
        try:
            importlib.import_module(found.name)
        except ImportError:
            only_extras(found.name)
    assert not {"torch", "transformers"} & sys.modules.keys()


def only_extras(module: str) -> None:
    assert ".".join(module.split(".")[:2]) in EXTRAS, module


def forward_is_the_equation() -> None:
    """Softmax, the two best, gates over their sum, ReLU networks; in float64."""
    layer = libmoe.Layer(8, 16, 4, 2, activation="relu", seed=3)
    weights = {name: parameter.data.astype(np.float64) for name, parameter in layer.parameters.items()}
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    expected = np.zeros((5, 8))
    logits = x @ weights["router.weight"].T + weights["router.bias"]  # [T,E]
    for t in range(5):
        best = np.argsort(-logits[t])[:2]
        gates = np.exp(logits[t, best] - logits[t, best].max())
        for e, gate in zip(best, gates / gates.sum()):
            inner = weights["experts.up.weight"][e] @ x[t] + weights["experts.up.bias"][e]
            y = weights["experts.down.weight"][e] @ np.maximum(inner, 0) + weights["experts.down.bias"][e]
            expected[t] += gate * y
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(other(x), layer(x))


def a_model_learns() -> None:
    moe = dict(n_experts=4, top_k=2, intermediate_size=32)
    model = libmoe.Model(32, 2, 2, vocabulary_size=128, moe=moe)
    optimizer = libmoe.AdamW(model.parameters, learning_rate=1e-2)
    text = np.frombuffer(b"to be or not to be " * 6, np.uint8).astype(np.int32)[None]
    losses = []
    for step in range(30):
        model.zero_grad()
        output = model.forward(text[:, :-1].copy(), text[:, 1:].copy(), training=True, step=step, tape=True)
        model.backward(output)
        optimizer.step(max_norm=1.0)
        losses.append(output.loss)
    assert losses[-1] < 0.5 * losses[0], losses
    libmoe.save_training("run.safetensors", step=30, parameters=model.parameters, optimizers=[optimizer])
    assert libmoe.Checkpoint("run.safetensors")


def there_is_no_openblas() -> None:
    assert "openblas" not in libmoe.Context().build_info().lower()
    try:
        libmoe.Context(matmul="openblas")
    except libmoe.FileError as error:
        assert "libopenblas0" in str(error) and "NATIVE" in str(error), error
    else:
        raise AssertionError("a context of OpenBLAS, where there is none")


def the_command_trains() -> None:
    Path("text.txt").write_bytes(b"the experts learn what they see\n" * 400)
    small = (
        "--hidden-size 16 --n-layers 1 --n-heads 2 --n-experts 4 --intermediate-size 16 --sequence-length 16"
    )
    command = [str(Path(sys.executable).parent / "libmoe"), "train", "text.txt", "--output", "run"]
    subprocess.run([*command, "--steps", "4", *small.split()], check=True, stdout=subprocess.DEVNULL)
    assert Path("run", "last.safetensors").exists()


CHECKS = (
    the_package_is_the_installed_one,
    every_module_is_there,
    forward_is_the_equation,
    a_model_learns,
    there_is_no_openblas,
    the_command_trains,
)

if __name__ == "__main__":
    for check in CHECKS:
        print(check.__name__, flush=True)
        check()
