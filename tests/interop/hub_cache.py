"""Reads a cache of ours with huggingface_hub, and puts a file into it from the server."""

import json
import os
import sys
from pathlib import Path

cache, endpoint, name = sys.argv[1:]
os.environ["HF_ENDPOINT"] = endpoint
os.environ["HF_HUB_DISABLE_XET"] = "1"
from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

cached = try_to_load_from_cache("owner/name", "tokenizer.json", cache_dir=cache)
hf_hub_download("owner/name", name, cache_dir=cache, endpoint=endpoint)
found = scan_cache_dir(cache)
print(
    json.dumps(
        {
            "cached": Path(cached).read_text(),
            "commits": [revision.commit_hash for repo in found.repos for revision in repo.revisions],
            "warnings": [str(warning) for warning in found.warnings],
        }
    )
)
