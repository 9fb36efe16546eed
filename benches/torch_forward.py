"""The shapes of forward.rs in PyTorch: torch.nn.functional.embedding, as many threads as there are cores.

    pip install torch
    cargo bench --bench forward          # runs this script by itself

One JSON argument {"vocab": V, "cases": [[d_model, tokens, kind, file of u32 ids], …]}; prints the medians in ms.
"""
import json
import os
import statistics
import sys
import time

import numpy
import torch

torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
job = json.loads(sys.argv[1])
tables, medians = {}, []


def sample(f, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        f()
    return (time.perf_counter() - start) * 1e3 / repeats


for d_model, tokens, _kind, path in job["cases"]:
    if d_model not in tables:
        tables = {d_model: (torch.randn(job["vocab"], d_model) * 0.02).requires_grad_()}
    table = tables[d_model]
    ids = torch.from_numpy(numpy.fromfile(path, dtype="<u4").astype("int64"))
    forward = lambda: torch.nn.functional.embedding(ids, table)
    assert torch.equal(forward(), table[ids])
    sample(forward, 3)
    repeats = max(1, min(20_000, int(5 / max(sample(forward, 3), 1e-5))))
    samples, started = [], time.perf_counter()
    while len(samples) < 9 or (len(samples) < 101 and time.perf_counter() - started < 1):
        samples.append(sample(forward, repeats))
    medians.append(statistics.median(samples))
print(json.dumps({"version": torch.__version__, "ms": medians}))
