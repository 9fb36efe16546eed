"""Writes token files the way other trainers do (numpy only), for our reader.

    python tests/interop/write.py FOLDER

Documents of ids below 50257; 50256 (50000 for the u32 files) separates them. Prints lengths of documents and a hash of
all ids as u32, for each file.
"""

import hashlib
import json
import pathlib
import struct
import sys

import numpy as np


def documents(separator, before):
    rng = np.random.default_rng(3)
    for length in [1, 5, 300, 2, 70000, 17]:
        ids = rng.integers(0, 50000, length)
        yield np.concatenate([[separator], ids] if before else [ids, [separator]])


def main():
    folder, about = pathlib.Path(sys.argv[1]), {}

    def made(name, parts):
        ids = np.concatenate(parts)
        about[name] = {"lengths": [len(part) for part in parts], "tokens": len(ids),
                       "sha256": hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest()}
        return ids

    # nanoGPT's prepare.py: ids, EOT appended, tofile.
    made("nanogpt.bin", list(documents(50256, False))).astype(np.uint16).tofile(folder / "nanogpt.bin")
    # llama2.c's tinystories.py: BOS (1) first.
    made("llama2c.bin", list(documents(1, True))).astype(np.uint16).tofile(folder / "llama2c.bin")
    # OLMo-core and Dolma: a memory map without a header.
    ids = made("olmo.npy", list(documents(100257, False)))
    np.memmap(folder / "olmo.npy", dtype=np.uint32, mode="w+", shape=ids.shape)[:] = ids
    # llm.c's data_common.py: EOT first, a header of 256 int32.
    for name, magic, version, dtype in [("llmc16.bin", 20240520, 1, np.uint16), ("llmc32.bin", 20240801, 7, np.uint32)]:
        ids = made(name, list(documents(50256, True)))
        header = np.zeros(256, dtype=np.int32)
        header[0], header[1], header[2] = magic, version, len(ids)
        (folder / name).write_bytes(header.tobytes() + ids.astype(dtype).tobytes())
    # datatrove's TokenizedFile: ids, and the ends of documents as u64.
    parts = list(documents(50256, False))
    made("datatrove.ds", parts).astype(np.uint16).tofile(folder / "datatrove.ds")
    ends = np.cumsum([len(part) for part in parts])
    (folder / "datatrove.ds.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    print(json.dumps(about))


main()
