"""Reads token files the way other trainers do (numpy only) and prints what is in them, as JSON.

    python tests/interop/read.py FORMAT FILE

Formats: megatron (FILE is the .bin), olmo, nanogpt-u16, nanogpt-u32, llmc, datatrove-u16, datatrove-u32.
"""

import hashlib
import json
import os
import struct
import sys

import numpy as np


def megatron(path):
    """As Megatron-LM's IndexedDataset: everything is in the .idx."""
    with open(path[:-4] + ".idx", "rb") as index:
        assert index.read(9) == b"MMIDIDX\x00\x00"
        version, code = struct.unpack("<QB", index.read(9))
        assert version == 1
        dtype = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}[code]
        sequences, documents = struct.unpack("<QQ", index.read(16))
        offset = index.tell()
    buffer = np.memmap(path[:-4] + ".idx", mode="r", order="C")
    lengths = np.frombuffer(buffer, dtype=np.int32, count=sequences, offset=offset)
    pointers = np.frombuffer(buffer, dtype=np.int64, count=sequences, offset=offset + lengths.nbytes)
    ends = np.frombuffer(buffer, dtype=np.int64, count=documents, offset=offset + lengths.nbytes + pointers.nbytes)
    assert lengths.shape[0] == pointers.shape[0] == ends[-1] and ends[0] == 0
    assert offset + lengths.nbytes + pointers.nbytes + ends.nbytes == buffer.shape[0]
    data = np.memmap(path, mode="r", order="C")
    rows = [np.frombuffer(data, dtype=dtype, count=n, offset=p) for n, p in zip(lengths, pointers)]
    whole = [np.concatenate(rows[a:b]) for a, b in zip(ends[:-1], ends[1:])]
    return np.concatenate(rows), [len(document) for document in whole]


def olmo(path, separator=100257):
    """As OLMo-core: a headerless array named .npy; documents end with the separator."""
    assert path.endswith(".npy")
    ids = np.memmap(path, mode="r", dtype=np.uint32)
    ends = np.flatnonzero(ids == separator) + 1
    return ids, np.diff(ends, prepend=0).tolist()


def nanogpt(path, dtype):
    return np.memmap(path, dtype=dtype, mode="r"), None


def llmc(path, separator=100257):
    """As llm.c's data loader: a header of 256 int32."""
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(256 * 4), dtype=np.int32)
        assert (header[0], header[1]) in [(20240520, 1), (20240801, 7)], header[:2]
        dtype = np.uint16 if header[0] == 20240520 else np.uint32
        ids = np.frombuffer(file.read(), dtype=dtype)
    assert len(ids) == header[2]
    # Every document begins with the separator, as data_common.py writes it. Moved to its end, the ids are ours.
    starts = np.flatnonzero(ids == separator)
    assert ids[0] == separator and ids[-1] != separator
    return np.append(ids[1:], ids.dtype.type(separator)), np.diff(starts, append=len(ids)).tolist()


def datatrove(path, size):
    """As datatrove's DatatroveFileDataset and its tokenized files: .ds, .ds.index, .ds.metadata."""
    with open(path + ".metadata") as file:
        name, tokens = file.read().splitlines()[:2]
    assert name.split("|")[1] == str(size)
    ids = np.memmap(path, dtype=np.uint16 if size == 2 else np.uint32, mode="r")
    ends = np.fromfile(path + ".index", dtype="<u8")
    assert len(ids) == int(tokens) == ends[-1]
    return ids, np.diff(ends, prepend=0).tolist()


READERS = {
    "megatron": megatron,
    "olmo": olmo,
    "nanogpt-u16": lambda path: nanogpt(path, np.uint16),
    "nanogpt-u32": lambda path: nanogpt(path, np.uint32),
    "llmc": llmc,
    "datatrove-u16": lambda path: datatrove(path, 2),
    "datatrove-u32": lambda path: datatrove(path, 4),
}


def main():
    ids, lengths = READERS[sys.argv[1]](sys.argv[2])
    print(json.dumps({
        "tokens": len(ids),
        "sha256": hashlib.sha256(np.asarray(ids).astype("<u4").tobytes()).hexdigest(),
        "lengths_sha256": lengths and hashlib.sha256(np.asarray(lengths, dtype="<u4").tobytes()).hexdigest(),
        "bytes": os.path.getsize(sys.argv[2]),
    }))


main()
