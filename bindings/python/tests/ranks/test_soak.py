"""Steps of three ranks go on after all that goes wrong; `make soak-ranks` takes ten thousand."""

from __future__ import annotations

from rank_soak import require_the_bits_of_one_process, soak

STEPS = 300


def test_steps_go_on_after_faults_with_the_bits_of_one_process() -> None:
    soaked = soak(STEPS)
    assert soaked.faults > STEPS / 5
    require_the_bits_of_one_process(soaked, STEPS)
    for held in soaked.memory:
        assert max(held[5:]) <= max(held[:5]) + (64 << 10)  # rooms grow to those of the largest step
