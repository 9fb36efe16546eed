"""Small models as PyTorch, transformers and gguf write them, and what these say their rows are: for tests/it/pretrained.rs.

    pip install torch transformers gguf
    python tests/golden/gen_pretrained.py
"""

import argparse
import json
import shutil
from pathlib import Path

import gguf
import numpy
import torch
import transformers

OUT = Path(__file__).parent / "pretrained"
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir()
torch.manual_seed(1337)
golden = {
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "gguf": "0.19.0"},
    "rows": {},
}

# GPT-2: tied, one file, f32; and the same as a pickle.
gpt2 = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
)
gpt2.save_pretrained(OUT / "gpt2")
torch.save(gpt2.state_dict(), OUT / "gpt2.bin")
torch.save({"epoch": 3, "state_dict": gpt2.state_dict()}, OUT / "gpt2_nested.pth")
golden["rows"]["gpt2"] = gpt2.transformer.wte.weight[[0, 7, 49]].tolist()

# Llama: a head of its own, bf16, in shards.
llama = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=False
    )
).to(torch.bfloat16)
llama.save_pretrained(OUT / "llama", max_shard_size="2KB")
golden["rows"]["llama"] = llama.model.embed_tokens.weight[[0, 7, 63]].float().tolist()

# GGUF: the same values in several types; what gguf itself dequantizes them to.
values = numpy.random.default_rng(1337).normal(0, 0.02, (40, 256)).astype(numpy.float32)
for name in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"]:
    kind = gguf.GGMLQuantizationType[name]
    path = OUT / f"{name.lower()}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "数"])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_float32("f", 0.5)
    writer.add_bool("yes", True)
    raw = gguf.quants.quantize(values, kind)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    golden["rows"][path.name] = gguf.quants.dequantize(raw, kind)[[0, 7, 39]][:, :40].tolist()

# transformers' resize. With fewer rows than columns the covariance has no inverse: the mean alone.
few = transformers.GPT2Model(transformers.GPT2Config(vocab_size=6, n_positions=4, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
golden["few"] = few.wte.weight.tolist()
few.resize_token_embeddings(8)
golden["few_resized"] = few.wte.weight.tolist()
# With many, noise of a billionth of the covariance: its moments over many new rows.
with torch.no_grad():
    many = transformers.GPT2Model(transformers.GPT2Config(vocab_size=400, n_positions=4, n_embd=4, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    many.wte.weight.copy_(torch.randn(400, 4) @ torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 1, 0.1]]))
    golden["many"] = many.wte.weight.tolist()
    many.resize_token_embeddings(20400)
    new = many.wte.weight[400:].double()
    golden["many_mean"] = new.mean(0).tolist()
    golden["many_covariance"] = (new.T.cov() * 1e9).tolist()

# What else PyTorch writes: views, dtypes, the checkpoint of a run, the format from before 1.6, a whole model.
drawn = torch.Generator().manual_seed(7)
whole = torch.randn(60, 6, generator=drawn)
tables = {
    "view.pth": {"wte.weight": whole[10:50], "lm_head.weight": whole[:40]},
    "transposed.pth": {"wte.weight": torch.randn(6, 40, generator=drawn).T},
    "dtypes.pth": {
        name: torch.arange(12).reshape(4, 3).to(getattr(torch, name))
        for name in ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "float8_e4m3fn", "uint32", "int8", "bool", "complex64", "uint16"]
    },
}
for name, tensors in tables.items():
    torch.save(tensors, OUT / name)
golden["rows"]["view.pth"] = whole[[10, 17, 49]].tolist()
model = torch.nn.ModuleDict({"wte": torch.nn.Embedding(40, 6), "head": torch.nn.Linear(6, 40)})
with torch.no_grad():
    model["wte"].weight.copy_(torch.randn(40, 6, generator=drawn))
rows = model["wte"].weight[[0, 7, 39]].tolist()
optimizer = torch.optim.AdamW(model.parameters())
model["head"](model["wte"](torch.arange(40))).sum().backward()
golden["rows"]["checkpoint.pth"] = rows
run = {
    "model": dict(model.named_parameters()),
    "optimizer": optimizer.state_dict() | {"moments": {0: torch.ones(40, 6)}},
    "args": argparse.Namespace(lr=1e-3, betas=[0.9, 0.95]),
    "best": numpy.float64(3.5),
    "seen": numpy.arange(5),
    "best_loss": torch.tensor(1.5),
    "device": torch.device("cpu"),
    "names": {"a", "b"},
    "seed": 1 << 70,
}
for protocol in [2, 4, 5]:
    torch.save(run, OUT / f"checkpoint{protocol}.pth", pickle_protocol=protocol)
tied = {"ids": torch.arange(5), "mask": torch.ones(3, dtype=torch.bool), "wte.weight": whole[10:50], "lm_head.weight": whole[10:50]}
for protocol in [2, 4]:
    torch.save(tied, OUT / f"old{protocol}.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
torch.save(torch.nn.Embedding(4, 2), OUT / "module.pth")

for path in OUT.rglob("*"):
    if path.name in ("generation_config.json", "config.json"):
        path.unlink()
(OUT / "golden.json").write_text(json.dumps(golden))
