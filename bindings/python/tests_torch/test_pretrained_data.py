"""The committed folders of tiny models are what their generator makes with the installed transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pretrained import generate
from pretrained.cases import CASES

SOME = ["mixtral", "gpt_oss", "deepseek_v3", "llama4_text"]
COMMITTED = Path(generate.__file__).parent / "folders"


def test_each_case_is_there() -> None:
    assert {path.name for path in COMMITTED.iterdir() if path.is_dir()} == set(CASES)
    assert {path.stem for path in COMMITTED.glob("*.npz")} == set(CASES)


@pytest.mark.parametrize("name", SOME)
def test_made_again(name: str, tmp_path: Path) -> None:
    model, found = generate.made(name)
    generate.save(name, model, tmp_path / name)

    written = sorted(path.name for path in (tmp_path / name).iterdir())
    assert written == sorted(path.name for path in (COMMITTED / name).iterdir())
    for path in (tmp_path / name).glob("*.json"):
        assert json.loads(path.read_text()) == json.loads((COMMITTED / name / path.name).read_text()), (
            path.name
        )
    for path in (tmp_path / name).glob("*.safetensors"):
        then = load_file(COMMITTED / name / path.name)
        now = load_file(path)
        assert now.keys() == then.keys()
        for each in now:
            np.testing.assert_array_equal(now[each], then[each], err_msg=each)

    with np.load(COMMITTED / f"{name}.npz") as then:
        assert set(then) == set(found)
        for each in then:
            if then[each].dtype == np.float32:
                largest = np.abs(then[each]).max()
                np.testing.assert_allclose(found[each], then[each], rtol=0, atol=1e-5 * largest, err_msg=each)
            else:
                np.testing.assert_array_equal(found[each], then[each], err_msg=each)
