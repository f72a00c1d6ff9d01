"""Torch's idle threads leave the processors to others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SPUN = """
import os, sys, time, torch
if "libmoe" in sys.argv:
    import libmoe.torch
    if "module" in sys.argv:
        libmoe.torch.MoE(8, 8, 2, 1)
    else:
        ids, ones = torch.zeros(1, 1, dtype=torch.long), torch.ones
        libmoe.torch.experts(ones(1, 4), ids, ones(1, 1), ones(2, 8, 4), ones(2, 4, 4))
x = torch.ones(1 << 20)
torch.set_num_threads(2)
used = 0.0
for _ in range(20):
    x.add_(1)
    began = time.process_time()
    time.sleep(0.02)  # this thread uses nothing meanwhile
    used += time.process_time() - began
print(used / 20)
"""


def spun(*arguments: str, **environment: str) -> float:
    """Seconds that torch's other thread goes on after a parallel region."""
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", SPUN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**plain, **environment})
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("what", [pytest.param("module", marks=pytest.mark.long), "experts"])
def test_idle_threads_sleep(what: str) -> None:
    assert spun("libmoe", what) < 0.3 * spun()


def test_who_has_chosen_a_policy_keeps_it() -> None:
    assert spun("libmoe", "experts", GOMP_SPINCOUNT="300000") > 0.5 * spun()
