"""Features on disk: a run that asks again for what an earlier one computed reads it instead."""

import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from .backbones import tensor_hash


def load_or_extract(cache_dir, key, compute):
    """Returns `compute()`, a float32 tensor, kept in `cache_dir` ("" = not kept) under the hash of `key`, a dict of plain
    values that must hold all that the features depend on. A damaged file is computed again, with a warning.
    """
    if not cache_dir:
        return compute()
    path = Path(cache_dir).expanduser() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            features = file.get_tensor("features")
            if tensor_hash(features) != file.metadata()["sha256"]:
                raise ValueError("wrong checksum")
            return features
    except Exception as error:  # no such file is the usual miss; a damaged one fails in many ways, and each is a miss
        if path.is_file():
            warnings.warn(f"kept features {path.name} are damaged ({error}): computed again", stacklevel=2)
    features = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # renamed when whole: nobody reads half a file
        save_file({"features": features.contiguous()}, Path(folder) / path.name, metadata={"sha256": tensor_hash(features)})
        os.replace(Path(folder) / path.name, path)
    return features
