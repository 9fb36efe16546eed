"""Writes tests/golden/head.json: losses and gradients of a linear layer and F.cross_entropy in PyTorch, in f64.

    pip install torch==2.15.0
    python3 tests/golden/gen_head.py

z-loss and soft cap, which F.cross_entropy does not have, are written with torch operations. Inputs are f32 numbers.
"""
import json
import pathlib

import torch
from torch.nn import functional

generator = torch.Generator().manual_seed(11)
cases = []
for n, c, v, biased, options in [
    (5, 4, 11, True, {}),
    (7, 3, 20, False, {"reduction": "sum"}),
    (6, 5, 13, True, {"reduction": "none", "label_smoothing": 0.1}),
    (6, 5, 13, False, {"label_smoothing": 0.3}),
    (6, 5, 13, True, {"z_loss": 0.01}),
    (6, 5, 13, True, {"soft_cap": 2.0}),
    (9, 6, 17, True, {"reduction": "sum", "label_smoothing": 0.2, "z_loss": 0.001, "soft_cap": 3.0}),
]:
    def draw(*shape):
        return torch.randn(*shape, generator=generator).double().requires_grad_()

    hidden, weight, bias = draw(n, c), draw(v, c), draw(v) if biased else None
    targets = torch.randint(0, v, (n,), generator=generator)
    targets[1] = -100
    logits = functional.linear(hidden, weight, bias)
    if cap := options.get("soft_cap"):
        logits = cap * torch.tanh(logits / cap)
    reduction = options.get("reduction", "mean")
    smoothing = options.get("label_smoothing", 0.0)
    losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    losses = losses + options.get("z_loss", 0.0) * torch.logsumexp(logits, 1).square() * (targets >= 0)
    loss = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / (targets >= 0).sum()}[reduction]
    if not options.get("z_loss"):
        direct = functional.cross_entropy(logits, targets, reduction=reduction, label_smoothing=smoothing)
        assert torch.allclose(loss, direct, rtol=1e-12)
    loss.sum().backward()

    def flat(tensor):
        return None if tensor is None else tensor.flatten().tolist()

    cases.append(
        {
            "n": n, "c": c, "v": v, "reduction": reduction, **{k: x for k, x in options.items() if k != "reduction"},
            "hidden": flat(hidden), "weight": flat(weight), "bias": flat(bias),
            "targets": [-1 if y < 0 else y for y in targets.tolist()],
            "loss": flat(loss.detach().reshape(-1)), "hidden_grad": flat(hidden.grad), "weight_grad": flat(weight.grad),
            "bias_grad": flat(bias.grad) if biased else [],
        }
    )
path = pathlib.Path(__file__).with_name("head.json")
path.write_text(json.dumps({"torch": torch.__version__, "cases": cases}) + "\n")
