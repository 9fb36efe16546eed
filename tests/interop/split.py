"""Says which documents go to the split val, from the words of docs/format.md alone.

    python tests/interop/split.py FILE

FILE is JSON: {"texts": [...], "choices": [[val, seed], ...]}. Prints, for each choice, a list with true for val.
"""

import json
import sys
import zlib

MASK = (1 << 64) - 1


def is_val(text, val, seed):
    h = zlib.crc32(text.encode("utf-8")[:65536])
    x = ((seed ^ h) + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    x = x ^ (x >> 31)
    return (x >> 11) / 2**53 < val


with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)
print(json.dumps([[is_val(text, val, seed) for text in task["texts"]] for val, seed in task["choices"]]))
