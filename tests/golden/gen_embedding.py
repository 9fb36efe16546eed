"""Writes tests/golden/embedding.safetensors: torch.nn.functional.embedding, values and gradients.

    pip install torch==2.15.0 numpy safetensors
    python3 tests/golden/gen_embedding.py

A 50 x 12 table and 4 x 7 ids with repeats, in f32 and bf16, with and without a padding id. The output gradient
is made of small multiples of 1/8, so that every order of summation gives the same bits.
"""
import pathlib

import torch
from safetensors.torch import save_file

V, C, PADDING = 50, 12, 3
generator = torch.Generator().manual_seed(1337)
weight = torch.randn(V, C, generator=generator)
ids = torch.randint(0, V, (4, 7), generator=generator)
ids[0, :3] = 49
ids[1, 2:5] = PADDING
ids[3] = 0
grad = torch.randint(-16, 17, (4, 7, C), generator=generator) / 8

tensors = {"weight": weight, "ids": ids, "grad": grad}
for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
    for case, padding in (("plain", None), ("padded", PADDING)):
        table = weight.to(dtype).clone()
        if padding is not None:
            table[padding] = 0
        table.requires_grad_()
        out = torch.nn.functional.embedding(ids, table, padding_idx=padding)
        out.backward(grad.to(dtype))
        tensors[f"{name}.{case}.out"] = out.detach().clone()
        tensors[f"{name}.{case}.grad"] = table.grad.clone()
save_file(tensors, pathlib.Path(__file__).with_name("embedding.safetensors"),
          metadata={"made_by": f"tests/golden/gen_embedding.py, torch {torch.__version__}"})
