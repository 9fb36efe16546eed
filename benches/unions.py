"""How many distinct ids are among the tokens of one step, and what that means for ranks that exchange a table's gradient.

    pip install numpy
    tallow prepare one.txt --separator none --out tokens/one       # a folder for each text, all by the same tokenizer
    python3 benches/unions.py --columns 64 tokens/*

Prints three tables in Markdown:
1. Distinct ids among n tokens of random sequences of 1024, for each folder and for all of them: the mean of draws of 2^20 tokens in
   all, and of at least 5 draws.
2. The largest share of a rank by the mean share, if ranks own contiguous rows of the table or the rows id mod N: of the tokens of
   all folders, and of the distinct rows of a step.
3. Megabytes (10^6) that a rank sends in a step of 8192 tokens a rank, by the formulas of docs/scale.md. Nothing is exchanged here.

A text that is shorter than n is counted whole ("≥", and its tokens). Table 3 then has two figures: with that count, and with the most
that is possible: every row of the table, or as many as tokens.
"""
import argparse
import json
import pathlib

import numpy

CONTEXT, TOKENS = 1024, 8192

parser = argparse.ArgumentParser()
parser.add_argument("folders", nargs="+", type=pathlib.Path)
parser.add_argument("--columns", type=int, default=64)
parser.add_argument("--rows", type=int, help="rows of the table [default: as many as the tokenizer needs]")
args = parser.parse_args()

manifests = [json.loads((folder / "manifest.json").read_text()) for folder in args.folders]
assert len({m["tokenizer"]["fingerprint"] for m in manifests}) == 1, "the folders were made by different tokenizers"
rows = args.rows or manifests[0]["table_rows"]
assert all(m["largest_id"] < rows for m in manifests), f"a folder has ids that a table of {rows} rows lacks"


def sequences(folder, dtype):
    files = sorted(folder.glob("train/*.bin"))
    ids = numpy.concatenate([numpy.fromfile(file, "<u4" if dtype == "u32" else "<u2") for file in files])
    return ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)


texts = {folder.name: sequences(folder, m["dtype"]) for folder, m in zip(args.folders, manifests)}
assert all(len(text) > 0 for text in texts.values()), f"a folder has fewer than {CONTEXT} tokens"
texts["all"] = everything = numpy.concatenate(list(texts.values()))


def draw(text, n, seed):
    count = min(len(text), n // CONTEXT)
    return text[numpy.random.default_rng(seed).choice(len(text), count, replace=False)].ravel()


def distinct(text, n):
    """The mean number of distinct ids among n tokens, and whether the text has as many."""
    if n > text.size:
        return len(numpy.unique(text)), False
    seeds = range(max(5, 2**20 // n))
    return round(sum(len(numpy.unique(draw(text, n, seed))) for seed in seeds) / len(seeds)), True


def line(*cells):
    print("|", " | ".join(str(cell) for cell in cells), "|")


def head(*cells):
    print()
    line(*cells)
    line(*["---"] * len(cells))


head("tokens", *texts)
for n in (1024, 8192, 65536, 524288, 8388608):
    counts = (distinct(text, n) + (text.size,) for text in texts.values())
    line(n, *(f"{u}" if whole else f"≥ {u} of {size}" for u, whole, size in counts))


def uneven(ids, ranks):
    """Largest share by mean share: of contiguous rows, and of the rows id mod ranks."""
    for owner in (ids // -(-rows // ranks), ids % ranks):
        yield f"{numpy.bincount(owner, minlength=ranks).max() * ranks / len(ids):.2f}"


head("ranks", "tokens, contiguous", "tokens, id mod N", "rows, contiguous", "rows, id mod N")
for ranks in (2, 8, 64):
    step = draw(everything, ranks * TOKENS, seed=0)
    line(ranks, *uneven(everything.ravel(), ranks), *uneven(numpy.unique(step), ranks))

row = 4 * args.columns  # gradients are f32
own, _ = distinct(everything, TOKENS)
head("ranks", "dense", "union", "owners", "ordered", "vocabulary parallel")
for n in (2, 8, 64, 1024):
    union, whole = distinct(everything, n * TOKENS)
    unions = [union] if whole else [union, min(rows, n * TOKENS)]
    others = (n - 1) / n
    bytes_sent = (
        [2 * others * rows * row],
        [2 * others * (union * row + rows) for union in unions],
        [others * (own + union) * (row + 4) for union in unions],
        [(n - 1) * TOKENS * (row + 4)],
        [2 * others * TOKENS * row],
    )
    line(n, *(" to ".join(f"{value / 1e6:.1f}" for value in values) for values in bytes_sent))
