"""The same shapes in PyTorch on the same GPU: eager, fused AdamW, SparseAdam, compiled. Prints one JSON object.

    python3 tests/gpu/torch_reference.py > torch.json
"""
import json
import math
import sys

import torch

ROWS, COUNT, WARM, RUNS = 100_256, 32 * 1024, 20, 100


def ids(kind, seed):
    draw = torch.Generator().manual_seed(seed)
    unit = torch.rand(COUNT, generator=draw, dtype=torch.float64)
    if kind == "Uniform":
        out = (unit * (ROWS - 1)).long()
    elif kind == "Zipf":
        out = (torch.exp(unit * math.log(ROWS)) - 1).clamp(max=ROWS - 1).long()
    else:
        out = torch.full((COUNT,), ROWS // 2)
    return out.view(32, 1024).cuda()


def median_us(run):
    """The device's time behind a kernel that keeps it busy while the host enqueues."""
    busy = torch.zeros(1 << 28, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for i in range(WARM + RUNS):
        busy.add_(1)
        start.record()
        run(i % 4)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times[WARM:])[RUNS // 2]


def case(d_model, dtype, kind):
    sets = [ids(kind, seed) for seed in range(4)]
    upstream = torch.randn(32, 1024, d_model, device="cuda", dtype=dtype)
    out = {}

    dense = torch.nn.Embedding(ROWS, d_model, device="cuda", dtype=dtype)
    out["forward"] = median_us(lambda i: dense(sets[i]))
    compiled = torch.compile(dense)
    out["forward, compiled"] = median_us(lambda i: compiled(sets[i]))

    def backward(module, i):
        module.weight.grad = None
        module(sets[i]).backward(upstream)

    out["forward and backward"] = median_us(lambda i: backward(dense, i))
    out["forward and backward, compiled"] = median_us(lambda i: backward(compiled, i))
    adamw = torch.optim.AdamW(dense.parameters(), fused=True)
    dense.weight.grad = torch.zeros_like(dense.weight)
    out["fused AdamW"] = median_us(lambda i: adamw.step())

    def whole(module, optimizer, i):
        backward(module, i)
        optimizer.step()

    out["whole step, fused AdamW"] = median_us(lambda i: whole(dense, adamw, i))
    if dtype == torch.float32:
        sparse = torch.nn.Embedding(ROWS, d_model, device="cuda", dtype=dtype, sparse=True)
        sparse_adam = torch.optim.SparseAdam(sparse.parameters())
        out["whole step, SparseAdam"] = median_us(lambda i: whole(sparse, sparse_adam, i))
    return out


def main():
    rows = []
    for d_model, dtype in [(1024, torch.float32), (64, torch.float32), (1024, torch.bfloat16)]:
        for kind in ["Uniform", "Zipf", "AllEqual"]:
            try:
                found = case(d_model, dtype, kind)
            except Exception as error:  # one kind of module that this version cannot run leaves the others
                print(f"{d_model} {dtype} {kind}: {error}", file=sys.stderr)
                continue
            for what, us in found.items():
                rows.append({"what": what, "d_model": d_model, "dtype": str(dtype), "kind": kind, "device_us": us})
    print(json.dumps({"torch": torch.__version__, "device": torch.cuda.get_device_name(), "timings": rows}, indent=1))


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("SKIPPED: no CUDA device", file=sys.stderr)
        sys.exit(77)
    main()
