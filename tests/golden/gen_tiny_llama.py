"""Writes assets/tiny-llama: a Llama with a head of its own, in shards, taught the story in assets/story.txt; for examples/finetune.rs.

    pip install torch==2.15.0 transformers==5.24.0
    python3 tests/golden/gen_tiny_llama.py
"""

import shutil
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parents[2]
OUT = ROOT / "assets" / "tiny-llama"
shutil.rmtree(OUT, ignore_errors=True)
torch.manual_seed(1337)
story = (ROOT / "assets" / "story.txt").read_text()

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=640, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
)
tokenizer.train_from_iterator([story], trainer)
fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")

config = transformers.LlamaConfig(
    vocab_size=tokenizer.get_vocab_size(),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=0,
)
model = transformers.LlamaForCausalLM(config)
ids = torch.tensor(tokenizer.encode(story).ids)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
steps = 1500
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
for step in range(steps):
    starts = torch.randint(0, len(ids) - 65, (16,))
    batch = torch.stack([ids[start : start + 64] for start in starts])
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step % 250 == 0 or step == steps - 1:
        print(step, loss.item(), flush=True)
model = model.to(torch.bfloat16)
model.save_pretrained(OUT, max_shard_size="100KB")
fast.save_pretrained(OUT)
print(fast.decode(model.generate(torch.tensor([tokenizer.encode("What is in the table?").ids]), max_new_tokens=30)[0]))
