"""The model of examples/train_gpt/model.rs in PyTorch: forward, backward and a fused AdamW step.

    pip install torch
    cargo bench --bench train_gpt     # runs this script by itself

One JSON argument {"cases": [{"vocab_size": …, "d_model": …, "blocks": …, "heads": …, "context": …, "batch": …, "dropout": …}, …],
"seconds": how long a case}; prints {"version": …, "cases": [median ms of a step, …]}.
"""
import json
import math
import os
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, c, heads, dropout):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(c, bias=False), nn.LayerNorm(c, bias=False)
        self.c_attn, self.c_proj = nn.Linear(c, 3 * c, bias=False), nn.Linear(c, c)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.heads, self.dropout = heads, dropout

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        share = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=share)
        seen = seen.transpose(1, 2).reshape(b, t, c)
        x = x + functional.dropout(self.c_proj(seen), share, self.training)
        inner = functional.relu(self.up(self.ln_2(x)))
        return x + functional.dropout(self.down(inner), share, self.training)


class Gpt(nn.Module):
    def __init__(self, vocab_size, d_model, blocks, heads, context, dropout, **_):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, d_model)
        self.h = nn.ModuleList(Block(d_model, heads, dropout) for _ in range(blocks))
        self.ln_f = nn.LayerNorm(d_model, bias=False)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        angles = torch.tensor(
            [[t / 10000 ** (c // 2 * 2 / d_model) for c in range(d_model)] for t in range(context)], dtype=torch.float64
        )
        positions = torch.where(torch.arange(d_model) % 2 == 0, angles.sin(), angles.cos()).float()
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, ids, targets):
        x = self.wte(ids) * self.wte.embedding_dim**0.5 + self.positions
        for block in self.h:
            x = block(x)
        return functional.cross_entropy(self.lm_head(self.ln_f(x)).flatten(0, 1), targets.flatten())


def main():
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    torch.manual_seed(1)
    job = json.loads(sys.argv[1])
    answers = []
    for case in job["cases"]:
        model = Gpt(**case)
        nn.init.normal_(model.wte.weight, std=0.02)
        nn.init.normal_(model.lm_head.weight, std=0.02)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
        tokens = torch.randint(0, case["vocab_size"], (100_000,))
        times = []
        started = time.perf_counter()
        while len(times) < 4 or (len(times) < 300 and time.perf_counter() - started < job["seconds"]):
            begin = time.perf_counter()
            starts = torch.randint(0, len(tokens) - case["context"] - 1, (case["batch"],)).tolist()
            x = torch.stack([tokens[i : i + case["context"]] for i in starts])
            y = torch.stack([tokens[i + 1 : i + 1 + case["context"]] for i in starts])
            optimizer.zero_grad(set_to_none=True)
            loss = model(x, y)
            loss.backward()
            optimizer.step()
            loss.item()
            times.append((time.perf_counter() - begin) * 1e3)
        assert math.isfinite(loss.item())
        answers.append(statistics.median(times[1:]))
        del model, optimizer
    print(json.dumps({"version": torch.__version__, "cases": answers}))


if __name__ == "__main__":
    main()
