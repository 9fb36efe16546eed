"""Writes tests/golden/cl100k.json: what tiktoken says, for texts that the Rust tests make again by the same rules.

    pip install tiktoken==0.14.0
    python3 tests/golden/gen_tokenizer.py [--ranks cl100k_base.tiktoken] [--folder FOLDER …]

Without --ranks tiktoken downloads the vocabulary. Every file of each FOLDER is recorded by name; the tests
check those that they find again. Ids are hashed as little-endian u32.
"""
import argparse
import base64
import hashlib
import itertools
import json
import pathlib
import struct
import sys

import tiktoken

args = argparse.ArgumentParser()
args.add_argument("--ranks")
args.add_argument("--folder", action="append", default=[])
args = args.parse_args()
if args.ranks:
    import tiktoken_ext.openai_public as public

    data = pathlib.Path(args.ranks).read_bytes()
    assert hashlib.sha256(data).hexdigest() == "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, data.splitlines())}
    public.load_tiktoken_bpe = lambda *_args, **_kwargs: ranks
    encoding = tiktoken.Encoding(**public.cl100k_base())
else:
    encoding = tiktoken.get_encoding("cl100k_base")

LESSON = "小沈阳江西演唱会邀请了,"
SPECIAL = "a<|endoftext|>\n <|fim_prefix|><|endofprompt|>  <|endoftext|"


class Lcg:
    """Knuth's MMIX generator; the upper half of the state."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n


def scalars():
    return (chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)


def random_scalar(rng):
    while True:
        c = 0x20 + rng.below(0x30000 - 0x20)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


PIECES = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "   \n  ", "\u00a0", "\u3000", "'s", "'LL", "'\u017f", "!!", "...",
          "123", "12345", "x", "Ab", "\U0001F600", "\u200d", "\u0301", "é", "漢字", "ß", "<|endoftext|>", "\0"]
ALPHABET = " \n\ra's1!"
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def texts():
    """Name → texts that are encoded one by one; their ids are joined."""
    rng = Lcg(7)
    yield "every scalar alone", scalars()
    yield "every scalar in company", (f"x{c}1 {c}y {c}{c}\n{c} 's" for c in scalars())
    yield "a run", ["a" * 1_000_000]
    yield "space run", [" " * 1_000_000]
    yield "space run, then a word", [" " * 100_000 + "word"]
    yield "newline run", ["\r\n" * 300_000]
    yield "digits", ["".join(chr(48 + rng.below(10)) for _ in range(500_000))]
    yield "han run", ["".join(chr(0x4E00 + rng.below(0x9FA6 - 0x4E00)) for _ in range(100_000))]
    yield "base64", ["".join(BASE64[rng.below(64)] for _ in range(300_000))]
    yield "random scalars", ["".join(random_scalar(rng) for _ in range(100_000))]
    yield "mixed pieces", ["".join(PIECES[rng.below(len(PIECES))] for _ in range(120_000))]
    yield "short strings", ("".join(t) for n in range(7) for t in itertools.product(ALPHABET, repeat=n))


def record(ids):
    return {"tokens": len(ids), "sha256": hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()}


generated = {}
for name, group in texts():
    ids = []
    for text in group:
        ids.extend(encoding.encode_ordinary(text))
    generated[name] = record(ids)
    print(name, generated[name], file=sys.stderr)

files = {}
for folder in args.folder:
    for path in sorted(pathlib.Path(folder).glob("*.txt")):
        data = path.read_bytes()
        files[path.name] = {"text_sha256": hashlib.sha256(data).hexdigest(), **record(encoding.encode_ordinary(data.decode()))}
        print(path.name, files[path.name], file=sys.stderr)

golden = {
    "made_by": f"tests/golden/gen_tokenizer.py, tiktoken {tiktoken.__version__}, Python {sys.version.split()[0]}",
    "lesson": {"text": LESSON, "ids": encoding.encode_ordinary(LESSON)},
    "special": {
        "text": SPECIAL,
        "as_text": encoding.encode(SPECIAL, disallowed_special=()),
        "as_tokens": encoding.encode(SPECIAL, allowed_special="all"),
    },
    "generated": generated,
    "files": files,
}
out = pathlib.Path(__file__).with_name("cl100k.json")
out.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
