"""The shapes of train_step.rs in PyTorch: AdamW foreach and fused (dense gradient), SparseAdam (sparse gradient).

    pip install torch
    cargo bench --bench train_step          # runs this script by itself

One JSON argument {"vocab": V, "stream": file of u32 ids, "cases": [[d_model, windows, length, kind], …]}; prints medians in
ms: {"ms": [{"foreach": …, "fused": …, "sparse_adam": …}, …]}.
"""
import json
import os
import statistics
import sys
import time

import numpy
import torch

torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
torch.manual_seed(1)
job = json.loads(sys.argv[1])
V = job["vocab"]
stream = numpy.fromfile(job["stream"], dtype="<u4").astype("int64")
rng = numpy.random.default_rng(1)


def draws(kind):
    if kind == "stream":
        return stream
    if kind == "uniform":
        return rng.integers(0, V, 4_000_000)
    weights = 1.0 / numpy.arange(1, V + 1)
    return numpy.searchsorted(numpy.cumsum(weights), rng.random(4_000_000) * weights.sum()).clip(0, V - 1)


def run(d_model, windows, length, ids, kind):
    table = (torch.randn(V, d_model) * 0.02).requires_grad_()
    if kind == "sparse_adam":
        optimizer = torch.optim.SparseAdam([table], lr=1e-3)
    else:
        optimizer = torch.optim.AdamW([table], lr=1e-3, weight_decay=0.01, fused=kind == "fused", foreach=kind == "foreach")
    times = []
    started = time.perf_counter()
    while len(times) < 8 or (len(times) < 200 and time.perf_counter() - started < 4):
        starts = rng.integers(0, len(ids) - length, windows)
        batch = torch.from_numpy(numpy.stack([ids[s:s + length] for s in starts]))
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        out = torch.nn.functional.embedding(batch, table, sparse=kind == "sparse_adam")
        out.sum().backward()
        optimizer.step()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[3:])


answers = []
for d_model, windows, length, kind in job["cases"]:
    ids = draws(kind)
    answers.append({mode: run(d_model, windows, length, ids, mode) for mode in ("foreach", "fused", "sparse_adam")})
print(json.dumps({"version": torch.__version__, "ms": answers}))
