"""nanoGPT's route from text to train.bin, written afresh: datasets.map with tiktoken, then a memory map in 1024 pieces.

    pip install datasets tiktoken numpy
    cargo bench --bench prepare          # runs this script by itself

One JSON argument {"input": file of JSON lines, "ranks": .tiktoken file}; prints tokens per second of the whole route with one
and with two processes, and a hash of the ids.
"""
import hashlib
import json
import os
import sys
import tempfile
import time

os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import numpy
import tiktoken
import tiktoken_ext.openai_public as public
from tiktoken.load import load_tiktoken_bpe

job = json.loads(sys.argv[1])
datasets.disable_progress_bars()
ranks = load_tiktoken_bpe(job["ranks"])
public.load_tiktoken_bpe = lambda *_args, **_kwargs: ranks
encoding = tiktoken.get_encoding("cl100k_base")


def process(example):
    ids = encoding.encode_ordinary(example["text"])
    ids.append(encoding.eot_token)
    return {"ids": ids, "len": len(ids)}


answer = {}
for num_proc in (1, 2):
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            dataset = datasets.load_dataset("json", data_files=job["input"], split="train", cache_dir=folder)
            start = time.perf_counter()
            tokenized = dataset.map(process, remove_columns=["text"], num_proc=num_proc, load_from_cache_file=False)
            total = int(numpy.sum(tokenized["len"], dtype=numpy.uint64))
            out = numpy.memmap(os.path.join(folder, "train.bin"), dtype=numpy.uint32, mode="w+", shape=(total,))
            at = 0
            for index in range(1024):
                piece = tokenized.shard(num_shards=1024, index=index, contiguous=True).with_format("numpy")
                if len(piece):
                    ids = numpy.concatenate(piece["ids"])
                    out[at:at + len(ids)] = ids
                    at += len(ids)
            out.flush()
            seconds.append(time.perf_counter() - start)
            answer["sha256"] = hashlib.sha256(out.astype("<u4").tobytes()).hexdigest()
    answer[f"num_proc_{num_proc}"] = total / sorted(seconds)[1]
print(json.dumps(answer))
