"""Writes tests/golden/train_gpt.json: the example's GPT in PyTorch, from our initial weights, on our batches, 100 steps.

    pip install torch==2.15.0 numpy safetensors
    mkdir /tmp/export && TALLOW_EXPORT=/tmp/export cargo test --test it export_for -- --ignored
    python3 tests/golden/gen_train_gpt.py /tmp/export

Also compares our whole final state with PyTorch's, prints the largest differences, and PyTorch's own between f32 and f64: where
a gradient is as small as AdamW's epsilon (1e-8), rounding decides about a step of the size of the learning rate.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file

here = pathlib.Path(__file__)
sys.path.insert(0, str(here.parents[2] / "benches"))
from torch_train_gpt import Gpt  # the same model that the benchmark times

folder = pathlib.Path(sys.argv[1])
start, run = load_file(folder / "start.safetensors"), load_file(folder / "run.safetensors")
ours = load_file(folder / "step-00000100" / "model.safetensors")
NAMES = {".attn.c_attn.": ".c_attn.", ".attn.c_proj.": ".c_proj.", ".mlp.c_fc.": ".up.", ".mlp.c_proj.": ".down."}


def renamed(weights):
    for ours, theirs in NAMES.items():
        weights = {name.replace(ours, theirs): tensor for name, tensor in weights.items()}
    return weights


def train(dtype):
    vocab_size, d_model = start["wte.weight"].shape
    model = Gpt(vocab_size, d_model, blocks=8, heads=4, context=16, dropout=0.0).to(dtype)
    model.load_state_dict(renamed(start), strict=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses = []
    for x, y in zip(run["inputs"], run["targets"]):
        optimizer.zero_grad()
        loss = model(x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


losses, theirs = train(torch.float32)
_, exact = train(torch.float64)
print("largest difference of losses:", max(abs(a - b) for a, b in zip(losses, run["losses"].tolist())))
print("largest difference of weights, and how many are above 1e-4: ours and PyTorch's; PyTorch's f32 and f64")
for name, tensor in renamed(ours).items():
    here_and_there, there = (tensor - theirs[name]).abs(), (theirs[name].double() - exact[name]).abs()
    found = [f"{d.max().item():.1e} {(d > 1e-4).sum().item():4}" for d in (here_and_there, there)]
    print(f"{found[0]}   {found[1]}   of {tensor.numel()} {name}")
seen = run["inputs"].flatten().unique()
print(f"rows of the table that were looked up: {len(seen)}")
rows = seen[:: max(1, len(seen) // 40)].tolist() + [1, 100256]
golden = {
    "torch": torch.__version__,
    "losses": losses,
    "rows": {row: [round(v, 8) for v in theirs["wte.weight"][row].tolist()] for row in rows},
}
here.with_name("train_gpt.json").write_text(json.dumps(golden, indent=0) + "\n")
