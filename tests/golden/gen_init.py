"""Writes tests/golden/init.json: rows of a seeded table by a second, plain implementation of the same rule.

    python3 tests/golden/gen_init.py

ChaCha8 (D. J. Bernstein) with a 64-bit counter and a 64-bit stream, key = seed (8 bytes, little-endian) +
b"tallow init v1 " + zeros, stream = row; two 32-bit words a pair of columns; Box and Muller's transform in f64.
"""
import json
import math
import pathlib
import struct
import sys


def rotate(x, n):
    return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF


def quarter(s, a, b, c, d):
    for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) & 0xFFFFFFFF
        s[z] = rotate(s[z] ^ s[x], n)


def words(seed, row, count):
    key = struct.pack("<Q", seed) + b"tallow init v1 " + bytes(9)
    out = []
    counter = 0
    while len(out) < count:
        state = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key))
        state += [counter & 0xFFFFFFFF, counter >> 32, row & 0xFFFFFFFF, row >> 32]
        s = state[:]
        for _ in range(4):
            for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                               (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                quarter(s, a, b, c, d)
        out += [(x + y) & 0xFFFFFFFF for x, y in zip(s, state)]
        counter += 1
    return out[:count]


def normal(seed, row, columns, std):
    w = words(seed, row, columns + columns % 2)
    values = []
    for a, b in zip(w[::2], w[1::2]):
        radius = math.sqrt(-2.0 * math.log(a / 2**32 + 0.5 / 2**32))
        angle = math.tau * (b / 2**32)
        values += [std * radius * math.cos(angle), std * radius * math.sin(angle)]
    return values[:columns]


def uniform(seed, row, columns, low, high):
    return [low + (high - low) * (w / 2**32) for w in words(seed, row, columns)]


def bits(values):
    return [struct.unpack("<I", struct.pack("<f", v))[0] for v in values]


golden = {"made_by": f"tests/golden/gen_init.py, Python {sys.version.split()[0]}", "rows": []}
for seed, row, columns in ((1337, 0, 64), (1337, 31809, 64), (0, 100255, 7), (2**64 - 1, 3, 100)):
    golden["rows"].append({"seed": str(seed), "row": row, "gpt2": bits(normal(seed, row, columns, 0.02)),
                           "keras": bits(uniform(seed, row, columns, -0.05, 0.05))})
pathlib.Path(__file__).with_name("init.json").write_text(json.dumps(golden) + "\n")
