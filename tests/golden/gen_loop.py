"""Writes tests/golden/loop.json: learning rates of PyTorch's schedulers; loss, perplexity and bits per byte by PyTorch; draws of a
sampler by its definition, in Python's own numbers.

    pip install torch==2.15.0
    python3 tests/golden/gen_loop.py

Bits per byte as nanochat's evaluate_bpb: special tokens have no bytes, and their bits do not count.
"""

import json
import math
import pathlib

import torch
from torch.nn import functional
from torch.optim import lr_scheduler

schedules = []
for decay, peak, low, warmup, total in [
    ("cosine", 3e-4, 3e-5, 10, 60),
    ("cosine", 1e-3, 0.0, 0, 25),
    ("linear", 2e-3, 2e-4, 7, 40),
    ("linear", 1e-2, 0.0, 1, 12),
    ("constant", 5e-4, 0.0, 5, 20),
    ("cosine", 1.0, 0.5, 3, 4),
]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    after = {
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=low),
        "linear": lambda: lr_scheduler.LinearLR(optimizer, 1.0, low / peak, total_iters=total - warmup),
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, 1.0, total_iters=0),
    }[decay]
    if warmup > 0:
        # Step s of the warm-up has s / warmup of the peak; the last of them is the first point of what follows.
        first = lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1) if warmup > 1 else lr_scheduler.ConstantLR(optimizer, 1.0, 0)
        scheduler = lr_scheduler.SequentialLR(optimizer, [first, after()], milestones=[warmup - 1])
    else:
        # Without one, step 1 is a step down already: the peak is "step 0".
        scheduler = after()
        optimizer.step()
        scheduler.step()
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    schedules.append({"decay": decay, "peak": peak, "min": low, "warmup_steps": warmup, "total_steps": total, "lr": rates})

tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"he", b"the", "数".encode()]
vocab_size, special = len(tokens) + 2, [len(tokens), len(tokens) + 1]
generator = torch.Generator().manual_seed(7)
hidden = torch.randn(2, 12, 3, generator=generator)
weight = torch.randn(vocab_size, 3, generator=generator)
targets = torch.randint(0, vocab_size, (2, 12), generator=generator)
targets[0, 3], targets[0, 7], targets[1, 0] = 259, 258, 256
targets[0, 5], targets[1, 11] = special
targets[1, 4] = -100
losses = functional.cross_entropy((hidden.double() @ weight.double().T).flatten(0, 1), targets.flatten(), reduction="none")
lengths = torch.tensor([len(token) for token in tokens] + [0, 0])
valid = targets.flatten() >= 0
bytes_each = torch.where(valid, lengths[targets.flatten().clamp(min=0)], 0)
loss = losses[valid].mean().item()
evaluation = {
    "tokens": [token.hex() for token in tokens],
    "hidden": hidden.tolist(),
    "weight": weight.tolist(),
    "targets": targets.tolist(),
    "loss": loss,
    "perplexity": math.exp(loss),
    "bits_per_byte": (losses[bytes_each > 0].sum() / (math.log(2) * bytes_each.sum())).item(),
    "count": int(valid.sum()),
    "bytes": int(bytes_each.sum()),
}
MASK = (1 << 64) - 1


def mix(x):
    """SplitMix64's step."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def probabilities(logits, temperature, top_k, top_p, masked):
    """(id, probability) of all that can be drawn: in order of the ids, or the likeliest first where something was cut."""
    left = [(logit, id) for id, logit in enumerate(logits) if id not in masked and logit > -math.inf]
    if temperature == 0:
        return [(max(left, key=lambda pair: (pair[0], -pair[1]))[1], 1.0)]
    if top_k is not None or top_p is not None:
        left.sort(key=lambda pair: (-pair[0], pair[1]))
        left = left[: top_k or len(left)]
    weights = [math.exp((logit - max(left)[0]) / temperature) for logit, _ in left]
    if top_p is not None:
        kept = next(n for n in range(1, len(weights) + 1) if sum(weights[:n]) >= top_p * sum(weights) or n == len(weights))
        weights = weights[:kept]
    return [(id, weight / sum(weights)) for (_, id), weight in zip(left, weights)]


def draw(pairs, seed, number):
    unit = (mix(seed ^ mix(number)) >> 11) / 2**53
    for id, probability in pairs:
        unit -= probability
        if unit < 0:
            return id
    return pairs[-1][0]


logits = torch.randn(12, generator=generator).mul(2).tolist() + [-math.inf, 1.5, 1.5]
samplers = []
for temperature, top_k, top_p, masked, seed in [
    (1.0, None, None, [], 1337),
    (0.7, None, None, [0, 2, 14], 1),
    (1.0, 4, None, [], 2**64 - 1),
    (1.3, None, 0.8, [13], 7),
    (2.0, 6, 0.7, [], 42),
    (0.0, None, None, [], 3),
    (1e-3, None, None, [], 3),
    (1.0, 1, None, [], 3),
    (1.0, None, 1e-9, [], 3),
]:
    pairs = probabilities(logits, temperature, top_k, top_p, masked)
    draws = [draw(pairs, seed, number) for number in range(200)]
    cfg = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    samplers.append({"cfg": cfg, "masked": masked, "probabilities": pairs, "draws": draws})
sampling = {"logits": [None if logit == -math.inf else logit for logit in logits], "samplers": samplers}

out = pathlib.Path(__file__).parent / "loop.json"
golden = {"torch": torch.__version__, "schedules": schedules, "evaluation": evaluation, "sampling": sampling}
out.write_text(json.dumps(golden) + "\n")
