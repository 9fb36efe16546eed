"""The shapes of head.rs in PyTorch, forward and backward: F.linear + F.cross_entropy, and F.linear_cross_entropy in chunks where PyTorch
has it; and a whole step of table, head, loss and fused AdamW at the first shape.

    pip install torch
    cargo bench --bench head          # runs this script by itself

One JSON argument {"cases": [[tokens, d_model, vocab], …], "seconds": how long a case}; prints medians in ms, and the resident
memory that the steps added at most, in bytes: {"version": …, "step_ms": …, "cases": [{"ms": …, "resident_bytes": …, "one_call_ms": …}, …]}.
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


def median_ms(step):
    times = []
    started = time.perf_counter()
    while len(times) < 3 or (len(times) < 50 and time.perf_counter() - started < job["seconds"]):
        begin = time.perf_counter()
        step()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[1:])


answers = []
for tokens, d_model, vocab in job["cases"]:
    hidden = torch.randn(tokens, d_model).requires_grad_()
    weight = (torch.randn(vocab, d_model) * 0.02).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,))
    before = resident() if os.path.exists("/proc/self/statm") else None

    def step():
        hidden.grad = weight.grad = None
        functional.cross_entropy(functional.linear(hidden, weight), targets).backward()

    ms = median_ms(step)
    peak = None if before is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    one_call = None
    if hasattr(functional, "linear_cross_entropy"):

        def one_call_step():
            hidden.grad = weight.grad = None
            functional.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions()).backward()

        one_call_step()
        grad = weight.grad
        step()
        assert torch.allclose(grad, weight.grad, rtol=1e-3, atol=1e-6), "linear_cross_entropy has other gradients"
        one_call = median_ms(one_call_step)
    answers.append({"ms": ms, "resident_bytes": peak, "one_call_ms": one_call})

tokens, d_model, vocab = job["cases"][0]
table = (torch.randn(vocab, d_model) * 0.02).requires_grad_()
weight = (torch.randn(vocab, d_model) * 0.02).requires_grad_()
optimizer = torch.optim.AdamW([table, weight], lr=1e-3, weight_decay=0.01, fused=True)


def whole_step():
    ids, targets = torch.randint(0, vocab, (2, tokens))
    optimizer.zero_grad(set_to_none=True)
    functional.cross_entropy(functional.linear(functional.embedding(ids, table), weight), targets).backward()
    optimizer.step()


print(json.dumps({"version": torch.__version__, "cases": answers, "step_ms": median_ms(whole_step)}))
