"""nanoGPT's way to get a batch, written afresh: random windows out of a memory map, as int64 tensors.

    pip install numpy torch
    cargo bench --bench loader           # runs this script by itself

One JSON argument {"path", "rows", "context", "warm", "cold", "mode": "warm" | "cold"}; prints tokens per second with the map
made anew for every batch (as nanoGPT does, against memory growth) and with the map kept.
"""
import json
import os
import sys
import time

import numpy
import torch

job = json.loads(sys.argv[1])
rows, context, batches = job["rows"], job["context"], job[job["mode"]]
torch.manual_seed(1337)


def batch(data):
    starts = torch.randint(len(data) - context, (rows,))
    x = torch.stack([torch.from_numpy(data[i:i + context].astype(numpy.int64)) for i in starts])
    y = torch.stack([torch.from_numpy(data[i + 1:i + 1 + context].astype(numpy.int64)) for i in starts])
    return x, y


def rate(get):
    runs = []
    for _ in range(3):
        if job["mode"] == "cold":
            with open(job["path"], "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        for _ in range(batches):
            batch(get())
        runs.append(batches * rows * context / (time.perf_counter() - start))
    return sorted(runs)[1]


def fresh():
    return numpy.memmap(job["path"], dtype=numpy.uint32, mode="r")


anew = rate(fresh)
kept = None
if job["mode"] == "warm":
    data = fresh()
    kept = rate(lambda: data)
else:  # a map that is kept would keep its pages
    kept = anew
print(json.dumps({"nanogpt": anew, "nanogpt_map_kept": kept}))
