"""Reads a safetensors file with the safetensors package: names, shapes and sums of its tensors, and its metadata, as JSON."""
import json
import sys

import numpy
from safetensors import safe_open

with safe_open(sys.argv[1], framework="np") as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    found = {
        "metadata": file.metadata(),
        "tensors": {
            name: {"shape": list(t.shape), "sum": float(t.astype(numpy.float64).sum())} for name, t in tensors.items()
        },
    }
print(json.dumps(found))
