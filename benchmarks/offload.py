"""How fast a layer is whose experts do not fit into memory: beside the same layer in memory, by form.

    python offload.py FOLDER

FOLDER is where the experts and offload.json go.  Expert n's chance goes as 1 / (n + 1) (Zipf).
The file is in the page cache; a disk may be slower.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import libmoe

HIDDEN, INNER, EXPERTS, TOP_K = 1024, 1024, 64, 4
ROUNDS = 7
TOKENS = (1, 16, 512, 4096)
FORMS: tuple[tuple[Any, Any], ...] = (("f32", "none"), ("f32", "f32"), ("bf16", "none"), ("bf16", "bf16"))


def zipf(tokens: int, round_number: int) -> Any:
    """Return distinct experts for each token, drawn one after another by the same chances [T,K]."""
    random = np.random.default_rng((tokens, round_number))
    # The largest of log chance + Gumbel noise are a draw without replacement.
    keys = random.gumbel(size=(tokens, EXPERTS)) - np.log(np.arange(1, EXPERTS + 1))
    return np.argsort(-keys, axis=1)[:, :TOP_K].astype(np.int32)


def seconds(layer: libmoe.Layer, tokens: int, round_number: int) -> float:
    """Return the time of one call."""
    x = np.random.default_rng(round_number).standard_normal((tokens, HIDDEN), np.float32)
    weights = np.full((tokens, TOP_K), 1 / TOP_K, np.float32)
    indices = zipf(tokens, round_number)
    start = time.perf_counter()
    layer.forward(x, expert_indices=indices, expert_weights=weights)
    return time.perf_counter() - start


def main() -> int:
    """Measure, print and write."""
    target = Path(sys.argv[1])
    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "n_experts": EXPERTS,
        "top_k": TOP_K,
        "router": "external",
        "expert_kind": "gated",
        "activation": "silu",
        "inference_only": True,
    }
    print(f"SwiGLU, H {HIDDEN} I {INNER} E {EXPERTS} K {TOP_K}, room for a quarter of the experts; ms a call")
    print("weights  prepared  tokens  in memory  offloaded  speed   hits")
    lines = []
    for weights, prepared in FORMS:
        path = target / f"offload-{weights}.safetensors"
        whole = libmoe.Layer(**sizes, weight_dtype=weights)
        whole.save(path, dtype=weights)
        whole.prepare(prepared)
        layer = libmoe.Layer(**sizes, weight_dtype=weights, unallocated="expert_weights")
        limit = sum(p.data.nbytes for p in whole.parameters.values()) // 4
        layer.offload(path, resident_limit=limit)
        layer.prepare(prepared)
        for tokens in TOKENS:
            for warm in range(3):
                seconds(layer, tokens, ROUNDS + warm)
            before = layer.offload_statistics
            turns = [(seconds(whole, tokens, n), seconds(layer, tokens, n)) for n in range(ROUNDS)]
            after = layer.offload_statistics
            hits, misses = after.hits - before.hits, after.misses - before.misses
            memory, file = (statistics.median(column) for column in zip(*turns))
            line = {"weights": weights, "prepared": prepared, "tokens": tokens, "hits": hits}
            lines.append({**line, "misses": misses, "memory": memory, "file": file})
            print(
                f"{weights:8} {prepared:9} {tokens:6} {1e3 * memory:10.2f} {1e3 * file:10.2f} "
                f"{memory / file:6.2f} {hits / (hits + misses):6.2f}"
            )
        layer.close()
        whole.close()
        path.unlink()
    everything = {"threads": len(os.sched_getaffinity(0)), "load_average": os.getloadavg(), "lines": lines}
    (target / "offload.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(f"Written: {target}/offload.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
