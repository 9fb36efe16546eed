"""One encoder of Python's on one file, in a process of its own: python3 encode_opponents.py ENGINE FILE RANKS

Prints milliseconds, the number of ids and their SHA-256. Called by the benchmark `encode`.
"""
import hashlib
import json
import sys
import time

import numpy as np

engine, path, ranks = sys.argv[1:]
with open(path, encoding="utf-8", newline="") as file:
    text = file.read()

start = time.perf_counter()
if engine == "gigatoken":
    import gigatoken

    encode = gigatoken.Tokenizer.from_tiktoken(ranks).encode
elif engine == "toktok":
    import toktok

    encode = toktok._encoding("cl100k_base").encode
elif engine == "quicktok":
    import quicktok

    encode = quicktok.get_encoding("cl100k_base").encode_ordinary
else:
    import base64

    import tiktoken

    # Its own pattern, without the network that its own loader wants.
    pattern = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    )
    with open(ranks, "rb") as file:
        pairs = (line.split() for line in file)
        merges = {base64.b64decode(token): int(rank) for token, rank in pairs}
    encode = tiktoken.Encoding("cl100k", pat_str=pattern, mergeable_ranks=merges, special_tokens={}).encode_ordinary
encode("a")
load = (time.perf_counter() - start) * 1e3

times = []
for _ in range(2):
    start = time.perf_counter()
    ids = encode(text)
    times.append((time.perf_counter() - start) * 1e3)
    ids = np.asarray(ids, dtype="<u4")
facts = {"cold": times[0], "warm": times[1], "load": load, "tokens": len(ids), "bytes": len(text.encode())}
print(json.dumps({**facts, "sha256": hashlib.sha256(ids.tobytes()).hexdigest()}))
