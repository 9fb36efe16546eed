"""Reads saved tokenizers with Python's tokenizers (NAME.json) and tiktoken (NAME.tiktoken and NAME.special_tokens.json), and says
what they make of the texts in cases.json. Writes NAME-again.json, as tokenizers does."""

import json
import os
import sys
from pathlib import Path

os.environ["TIKTOKEN_CACHE_DIR"] = ""  # the file that is there, not an earlier one of this name

import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer

# tiktoken's own, from tiktoken_ext/openai_public.py.
CL100K = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
O200K = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
R50K = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
PATTERNS = {"cl100k": CL100K, "odd": CL100K, "o200k": O200K, "r50k": R50K, "p50k": R50K}

folder = Path(sys.argv[1])
cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
found = {}
for name in cases["names"]:
    tokenizer = Tokenizer.from_file(str(folder / f"{name}.json"))
    tokenizer.save(str(folder / f"{name}-again.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in cases["texts"]]
    decoded = [tokenizer.decode(one, skip_special_tokens=False) for one in ids]
    found[name] = {"tokenizers": ids, "decoded": decoded}
    ranks = folder / f"{name}.tiktoken"
    if ranks.exists():
        encoding = tiktoken.Encoding(
            name,
            pat_str=PATTERNS[name.split("-")[0]],
            mergeable_ranks=load_tiktoken_bpe(str(ranks)),
            special_tokens=json.loads((folder / f"{name}.special_tokens.json").read_text(encoding="utf-8")),
        )
        found[name]["tiktoken"] = [encoding.encode(text, allowed_special="all") for text in cases["texts"]]
json.dump(found, sys.stdout)
