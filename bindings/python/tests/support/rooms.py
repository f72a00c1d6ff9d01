"""The room C of an expert by every formula of moe_capacity, worked out on paper.

T tokens, E experts, K choices, whether in training, the settings, C. All T tokens choose the fullest expert.
"""

from __future__ import annotations

from typing import Any

ROOMS: list[tuple[int, int, int, bool, dict[str, Any], int]] = [
    (10, 4, 2, True, {"capacity_formula": "constant", "capacity": 3}, 3),
    (10, 4, 2, True, {"capacity_formula": "megatron"}, 5),
    (10, 4, 2, True, {"capacity_formula": "megatron", "capacity_factor": 1.5}, 8),  # ceil 7.5
    (10, 4, 2, True, {"capacity_formula": "megatron", "min_capacity": 7}, 7),
    (10, 4, 1, True, {"capacity_formula": "deepspeed"}, 4),  # ceil 2.5 is 3
    (10, 4, 1, True, {"capacity_formula": "deepspeed", "min_capacity": 2}, 3),
    (10, 4, 2, True, {"capacity_formula": "megablocks", "capacity_factor": 1.5}, 7),  # int 7.5
    (10, 4, 2, True, {"capacity_formula": "tutel", "capacity_factor": 1.5}, 8),  # 2 int(1.5 * 3)
    (10, 4, 2, True, {"capacity_formula": "tutel"}, 10),  # the fullest
    (10, 4, 2, True, {"capacity_formula": "tutel", "capacity_factor": -1.5}, 8),
    (10, 4, 2, True, {"capacity_formula": "tutel", "capacity_factor": -2.0}, 10),  # of 12
    (11, 8, 2, True, {"capacity_formula": "fastmoe"}, 3),  # 14 * 2 // 8
    (11, 8, 2, False, {"capacity_formula": "fastmoe"}, 6),  # 27 * 2 // 8
    (40, 4, 2, True, {"capacity_formula": "lucidrains"}, 12),  # int 12.5
    (40, 4, 2, False, {"capacity_formula": "lucidrains"}, 20),
    (10, 4, 2, True, {"capacity_formula": "lucidrains", "capacity_factor": 8.0}, 10),  # of 20
    (3, 4, 2, True, {"capacity_formula": "lucidrains"}, 4),
    (10, 4, 2, True, {"capacity_formula": "nllb"}, 6),
    (10, 4, 2, False, {"capacity_formula": "nllb"}, 6),
    (10, 4, 2, False, {"capacity_formula": "nllb", "eval_capacity_factor": 0.25}, 3),
    (40, 4, 2, True, {"capacity_formula": "flaxformer"}, 12),  # 12.5 to even
    (44, 4, 2, True, {"capacity_formula": "flaxformer"}, 14),  # 13.75
    (40, 4, 2, False, {"capacity_formula": "flaxformer"}, 20),
    (8, 4, 2, True, {"capacity_formula": "flaxformer"}, 4),  # round 2.5 is 2
    (30, 4, 2, True, {"capacity_formula": "classic"}, 9),  # int 9.375
    (30, 4, 2, False, {"capacity_formula": "classic", "eval_capacity_factor": 2.0}, 15),
    (30, 4, 2, False, {"capacity_formula": "classic", "capacity_factor": 1.0}, 7),
    (30, 4, 2, True, {"capacity_formula": "classic_total"}, 37),  # int 37.5
    (30, 4, 2, True, {"capacity_formula": "classic_total", "capacity_factor": 0.45}, 13),  # int 13.5
]
