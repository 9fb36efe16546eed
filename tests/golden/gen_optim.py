"""Writes tests/golden/optim.safetensors: 25 steps of torch.optim.AdamW and SparseAdam on an embedding.

    pip install torch==2.15.0 numpy safetensors
    python3 tests/golden/gen_optim.py
"""
import pathlib

import torch
from safetensors.torch import save_file

V, C, STEPS, N = 40, 6, 25, 8
generator = torch.Generator().manual_seed(7)
start = torch.randn(V, C, generator=generator) * 0.1
ids = torch.randint(0, V, (STEPS, N), generator=generator)
ids[3] = 5
grad = torch.randn(STEPS, N, C, generator=generator)
tensors = {"weight": start, "ids": ids.to(torch.int64), "grad": grad}
for name in ("adamw", "sparse"):
    table = start.clone().requires_grad_()
    if name == "adamw":
        optimizer = torch.optim.AdamW([table], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    else:
        optimizer = torch.optim.SparseAdam([table], lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    for step in range(STEPS):
        optimizer.zero_grad()
        out = torch.nn.functional.embedding(ids[step], table, sparse=name == "sparse")
        (out * grad[step]).sum().backward()
        optimizer.step()
    tensors[name] = table.detach().clone()
path = pathlib.Path(__file__).with_name("optim.safetensors")
save_file(tensors, path, metadata={"made_by": f"tests/golden/gen_optim.py, torch {torch.__version__}"})
path.chmod(0o644)
