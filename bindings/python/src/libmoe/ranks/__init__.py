"""Layers over several ranks, planned and simulated: what each way to divide them sends, keeps and takes.

    from libmoe.ranks import LayerWork, Machine, plan

    work = LayerWork(2048, 768, n_experts=64, top_k=8, tokens=1024, expert_kind="gated")
    print(plan(work, Machine(cores=2, core_rate=6e10, node_rate=1.1e11), ranks=4, ranks_per_node=2))

docs/scale.md says how to go from one process to several, and how well these equations agree with what is
measured.
"""

from .machine import Machine
from .measuring import measure
from .picture import svg
from .planning import RankPlan, plan
from .simulation import RANKS, Point, simulate, table
from .strategies import Strategy
from .work import LayerWork

__all__ = [
    "RANKS",
    "LayerWork",
    "Machine",
    "Point",
    "RankPlan",
    "Strategy",
    "measure",
    "plan",
    "simulate",
    "svg",
    "table",
]
