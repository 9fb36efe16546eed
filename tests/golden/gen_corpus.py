"""A small corpus and what tiktoken makes of it: corpus.jsonl (also .zst and .parquet), corpus.json.

    pip install tiktoken zstandard pyarrow
    python tests/golden/gen_corpus.py --ranks cl100k_base.tiktoken

Made with tiktoken 0.14.0, zstandard 0.25.0, pyarrow 26.0.1, Python 3.11. The texts are made of the words below by a generator with a fixed seed.
"""

import argparse
import hashlib
import json
import pathlib

import pyarrow
import pyarrow.parquet
import tiktoken
import tiktoken_ext.openai_public as public
from tiktoken.load import load_tiktoken_bpe
import zstandard

WORDS = ["the", "row", "of", "a", "table", "becomes", "number", "数字", "变", "矩阵", "小沈阳", "don't", "I'll", "12345",
         "\n", "\n\n", "  ", "\t", "é", "naïve", "😀", "<|endoftext|>", "x=1;", "/* c */", "…", "Ünïcode", "\r\n", "。", "'s"]
FOLDER = pathlib.Path(__file__).parent


def documents():
    state = 7
    for number in range(120):
        words = []
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        for _ in range((state >> 33) % 90):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            words.append(WORDS[(state >> 33) % len(WORDS)])
        yield {"id": number, "text": " ".join(words), "meta": {"text": "not this one", "n": [1, 2, None]}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", help="the vocabulary, if tiktoken cannot download it")
    if ranks := parser.parse_args().ranks:
        loaded = load_tiktoken_bpe(ranks)
        public.load_tiktoken_bpe = lambda *_args, **_kwargs: loaded
    encoding = tiktoken.get_encoding("cl100k_base")
    rows, lengths = [], []
    with open(FOLDER / "corpus.jsonl", "w", encoding="utf-8") as out:
        for number, document in enumerate(documents()):
            # JSON may spell a character in two ways; both occur.
            out.write(json.dumps(document, ensure_ascii=number % 2 == 0) + "\n")
            ids = encoding.encode_ordinary(document["text"])
            if ids:
                rows += ids + [100257]
                lengths.append(len(ids) + 1)
    raw = b"".join(i.to_bytes(4, "little") for i in rows)
    golden = {"tokens": len(rows), "documents": len(lengths), "sha256": hashlib.sha256(raw).hexdigest(),
              "lengths_sha256": hashlib.sha256(b"".join(n.to_bytes(4, "little") for n in lengths)).hexdigest()}
    (FOLDER / "corpus.json").write_text(json.dumps(golden, indent=1) + "\n")

    # Two zstd frames and a skippable one between them; Parquet in row groups of 25.
    lines = (FOLDER / "corpus.jsonl").read_bytes()
    cut = lines.index(b"\n", len(lines) // 2) + 1
    frame = zstandard.ZstdCompressor(level=19, write_checksum=True).compress
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"skip!"
    (FOLDER / "corpus.jsonl.zst").write_bytes(frame(lines[:cut]) + skippable + frame(lines[cut:]))
    table = pyarrow.Table.from_pylist([{"id": d["id"], "text": d["text"]} for d in documents()])
    pyarrow.parquet.write_table(table, FOLDER / "corpus.parquet", row_group_size=25, compression="zstd")


main()
