"""Experts over the processes of torch.distributed: the bits of one process, and nobody waits for ever."""

from __future__ import annotations

import pytest
from processes import run


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("test", ["experts", "unwanted", "refused", "module"])
def test_several_processes(test: str, size: int) -> None:
    assert run("expert_ranks.py", test, size) == [0] * size
