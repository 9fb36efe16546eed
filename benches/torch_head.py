"""The shapes of head.rs in PyTorch: F.linear + F.cross_entropy, forward and backward.

    pip install torch
    cargo bench --bench head          # runs this script by itself

One JSON argument {"cases": [[tokens, d_model, vocab], …], "seconds": how long a case}; prints medians in ms, and the resident
memory that the steps added at most, in bytes: {"version": …, "cases": [{"ms": …, "peak_bytes": …}, …]}.
"""
import json
import os
import resource
import statistics
import sys
import time

import torch
from torch.nn import functional

torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
torch.manual_seed(1)
job = json.loads(sys.argv[1])


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


answers = []
for tokens, d_model, vocab in job["cases"]:
    hidden = torch.randn(tokens, d_model).requires_grad_()
    weight = (torch.randn(vocab, d_model) * 0.02).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,))
    before = resident() if os.path.exists("/proc/self/statm") else None
    times = []
    started = time.perf_counter()
    while len(times) < 3 or (len(times) < 50 and time.perf_counter() - started < job["seconds"]):
        hidden.grad = weight.grad = None
        begin = time.perf_counter()
        functional.cross_entropy(functional.linear(hidden, weight), targets).backward()
        times.append((time.perf_counter() - begin) * 1e3)
    peak = None if before is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    answers.append({"ms": statistics.median(times[1:]), "peak_bytes": peak})
print(json.dumps({"version": torch.__version__, "cases": answers}))
