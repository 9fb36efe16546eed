"""Loads a model's folder with transformers and tells what it says: the likeliest tokens after a prompt, as JSON.

    python tests/interop/speak.py FOLDER PROMPT-FILE TOKENS-FILE
"""

import json
import sys
from pathlib import Path

import torch
import transformers

folder, prompt, tokens = sys.argv[1], Path(sys.argv[2]).read_text(), int(Path(sys.argv[3]).read_text())
transformers.logging.set_verbosity_error()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
assert not any(report.values()), report
ids = tokenizer(prompt, return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits[0, -1]
    spoken = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)[0].tolist()
print(
    json.dumps(
        {
            "vocab_size": model.config.vocab_size,
            "table": list(model.get_input_embeddings().weight.shape),
            "head": list(model.get_output_embeddings().weight.shape),
            "tied": model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr(),
            "prompt": ids[0].tolist(),
            "ids": spoken,
            "text": tokenizer.decode(spoken),
            "logits": logits.tolist(),
        }
    )
)
