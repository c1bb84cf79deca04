"""Checkpoints as people have them: read without running their code, and put onto a timm model."""

import argparse
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from .errors import WeightsError, printable, some
from .files import require_regular

LONGEST_HEADER = 16 * 2**20  # bytes of a safetensors header that are looked at for what was lost
DEEPEST = 8  # dicts within dicts that are looked into
# What training scripts put beside the tensors: options, the best score so far. Reading it does
# nothing.
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_TYPES = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *NUMPY_TYPES,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 called it
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]
AVERAGED = {"ema", "teacher"}  # words of names that averaged weights go by
NEGATIONS = {"no", "non", "not", "wo", "without", "pre", "before", "raw"}  # just before such a word
# Beside a backbone, in what trained it: other classifiers, projections, losses, masked input.
BESIDE = re.compile(
    r"(aux\w*|heads?|head_dist|(dist|mlp|proj|projection|dino|ibot|cls|class|ssl)_head|classifier"
    r"|fc|linear|projector|projection|predictor|prototypes|decoder|criterion|loss\w*|metrics?)\..+"
    r"|n_averaged|mask_token|total_ops|total_params",
    flags=re.IGNORECASE,
)
# Computed from a model's sizes, never learnt; or not needed to evaluate.
DERIVED = re.compile(
    r"(.+\.)?(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask"
    r"|total_ops|total_params)"
)
# In timm's modules: what turns the names of a model's first authors, or torchvision's, into its.
CONVERTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")


# ---- reading a file --------------------------------------------------------------------------


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a weights file -> its tensors by name, as they are stored; the names of dicts within
    dicts are joined by dots. Pickles are read with `weights_only=True`.

    Raises:
        WeightsError: the file is missing, damaged, no regular file, carries code, or has no tensors
            by name.
    """
    path = Path(path)
    try:
        require_regular(path)
        content = load_file(path) if is_safetensors(path) else read_pickle(path)
    except Exception as error:  # files fail in many ways; all mean that this one is not usable
        raise WeightsError(f"weights file {path} {describe_failure(path, error)}") from error
    found = tensors_by_name(content)
    if not found:
        kind = type(content).__name__
        raise WeightsError(f"weights file {path} holds no tensors by name, but a {kind}")
    return found


def is_safetensors(path: Path) -> bool:
    """Whether a file is in the format of safetensors: by what it begins with, else by its name."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return True
    return path.suffix == ".safetensors" and not start.startswith((b"PK\x03\x04", b"\x80\x02"))


def read_pickle(path: Path) -> object:
    """What `torch.save` has written, no code run.

    Raises:
        Exception: of many kinds, as PyTorch says; ValueError: it would unpack to far more.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 2 * path.stat().st_size + 2**20:  # PyTorch itself never compresses
            raise ValueError(f"it would unpack to {unpacked / 2**20:.0f} MB")
    known = torch.serialization.safe_globals(HARMLESS)
    with warnings.catch_warnings(action="ignore"), path.open("rb") as file, known:
        return torch.load(file, map_location="cpu", weights_only=True)


def describe_failure(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do, in one line."""
    told = " ".join(str(error).split()) or type(error).__name__
    unusable = "is missing, damaged or no plain tensors"
    carried = re.findall(r"GLOBAL ([\w.]+)", told)
    if carried or "TorchScript" in told:
        what = f"{carried[0]}, which is code" if carried else "a TorchScript program"
        advice = "where it was made, save `model.state_dict()` alone and give that"
        return f"{unusable}: it holds {what} and is not run: {advice}"
    if told.startswith("Weights only load failed"):  # with the advice to run the code
        told = "not what torch.save writes"
    return f"{unusable} ({told[:160]}{describe_lost_tensors(path)})"


def describe_lost_tensors(path: Path) -> str:
    """Names the tensors that a truncated safetensors file has lost, as far as its JSON header is
    there; "" for other files."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")  # of the header
        header = file.read(min(size, LONGEST_HEADER))  # it may be cut off itself
    entries = re.findall(rb'"([^"]+)":\s*{[^{}]*"data_offsets":\s*\[\d+,\s*(\d+)\]', header)
    room = path.stat().st_size - 8 - size
    lost = [key.decode(errors="replace") for key, end in entries if int(end) > room]
    return f"; {len(lost)} tensors are cut off: {lost[:4]}" if lost else ""


def tensors_by_name(content: object) -> dict[str, torch.Tensor]:
    """The tensors in dicts within dicts, each by its names joined by dots; every dict counts once.

    What holds no plain memory (sparse, quantised, of no device) is left out.
    """
    found: dict[str, torch.Tensor] = {}
    seen = set()
    todo = [("", content, 0)]
    while todo:
        name, value, depth = todo.pop()
        if isinstance(value, torch.Tensor):
            if value.device.type == "cpu" and value.layout == torch.strided and name:
                found[name] = value.detach()
        elif isinstance(value, Mapping) and id(value) not in seen and depth < DEEPEST:
            seen.add(id(value))
            named = [(key, one) for key, one in value.items() if isinstance(key, str)]
            for key, one in reversed(named):
                todo.append((f"{name}.{key}" if name else key, one, depth + 1))
    return found


# ---- fitting it to a model -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """How a part of a checkpoint fits a model without its classifier."""

    part: str  # of the file: what its names begin with, "" for all of it
    body: dict[str, torch.Tensor]  # by the model's names
    head: dict[str, torch.Tensor]  # of the classifier, whatever its size
    problems: tuple[str, ...]  # why it does not fit


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """The names of a timm model's classifiers; none for one that has none."""
    names = model.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def is_under(key: str, names: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to one of the modules of those names."""
    return key.startswith(tuple(f"{name}." for name in names))


def body_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model without its classifiers."""
    names = classifier_names(model)
    return {key: one for key, one in model.state_dict().items() if not is_under(key, names)}


def counted(names: Sequence[str]) -> str:
    """How many names there are, and the first of them."""
    shown = some(printable(name[:80]) for name in names)  # a damaged file's may be long
    return f"{len(names)} ({shown})"


def fit_part(model: nn.Module, part: str, tensors: Mapping[str, torch.Tensor]) -> Fit:
    """How tensors, by the model's names, fit it."""
    needed = body_of(model)
    heads = classifier_names(model)
    stages = {key.partition(".")[0] for key in needed}
    body = {key: tensors[key] for key in needed if key in tensors}
    missing = [key for key in needed if key not in body and not DERIVED.fullmatch(key)]
    unlike = []
    for key, tensor in body.items():
        if tensor.shape != needed[key].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(needed[key].shape)}"
            unlike.append(f"{key}: {shapes}")
        elif tensor.is_floating_point() != needed[key].is_floating_point():
            unlike.append(f"{key}: {tensor.dtype}")
    surplus = []
    for key in tensors:
        is_known = key in needed or is_under(key, heads) or DERIVED.fullmatch(key)
        beside = BESIDE.fullmatch(key) and key.partition(".")[0] not in stages
        if not (is_known or beside):
            surplus.append(key)
    found = {"missing": missing, "of another shape": unlike, "surplus": surplus}
    return Fit(
        part=part,
        body=body,
        head={key: one for key, one in tensors.items() if is_under(key, heads)},
        problems=tuple(f"{what}: {counted(keys)}" for what, keys in found.items() if keys),
    )


def convert_names(
    model: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """Tensors by the names of the architecture's first authors, or torchvision's, renamed as timm
    does it; None where timm does not, or would compute new ones (a file for another input size)."""
    module = sys.modules[type(model).__module__]
    memory = {one.untyped_storage().data_ptr() for one in tensors.values()}
    for convert in (getattr(module, name, None) for name in CONVERTERS):
        if convert is None:
            continue
        arguments = (dict(tensors), model)[: convert.__code__.co_argcount]
        try:
            renamed = convert(*arguments)
            is_old = [one.untyped_storage().data_ptr() in memory for one in renamed.values()]
        except Exception:  # written for files of one kind: others break it in any way
            continue
        if all(is_old):
            return renamed
    return None


def parts_of(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """What the names of a model's tensors begin with in a checkpoint, where at least half of them
    are there; else the usual wrappings, for other names of the same tensors."""
    needed = {key for key in body_of(model) if not DERIVED.fullmatch(key)}
    counts: Counter[str] = Counter()
    for key in tensors:
        words = key.split(".")
        for start in range(len(words)):
            if ".".join(words[start:]) in needed:
                counts["".join(f"{word}." for word in words[:start])] += 1
    likely = [part for part, count in counts.most_common() if 2 * count >= len(needed)]
    return likely or ["", "model.", "state_dict."]


def fits_of(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[Fit]:
    """How each likely part of a checkpoint fits, the likeliest first."""
    for part in parts_of(model, tensors):
        inside = {
            key.removeprefix(part): one for key, one in tensors.items() if key.startswith(part)
        }
        fit = fit_part(model, part, inside)
        renamed = convert_names(model, inside) if fit.problems and inside else None
        again = fit_part(model, part, renamed) if renamed else fit
        yield again if not again.problems else fit


def hold_equal_numbers(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, as far as the narrower of their types tells."""
    narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(narrow), other.to(narrow))


def are_equal(one: Fit, other: Fit) -> bool:
    """Whether two parts of a checkpoint hold the same weights, in any precision. Only what both
    hold counts: a part that fits may lack what is not needed to evaluate."""
    common = one.body.keys() & other.body.keys()
    return all(hold_equal_numbers(one.body[key], other.body[key]) for key in common)


def is_averaged(part: str) -> bool:
    """Whether the name of a checkpoint's part says that its weights are averaged: it may also say
    that they are not ("non_ema")."""
    words = re.findall(r"[a-z]+", part.lower())
    before = {earlier for earlier, word in pairwise(["", *words]) if word in AVERAGED}
    return bool(before) and not before & NEGATIONS


def fullness(fit: Fit) -> int:
    """The bytes of a part's tensors: of equal ones, the most precise and complete has the most."""
    return sum(tensor.nbytes for tensor in fit.body.values())


def choose_fit(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Fit:
    """The part of a checkpoint that fits a model; averaged weights (EMA, a teacher) come first, as
    timm takes them, and of equal ones the fullest.

    Raises:
        ValueError: none fits, or several do, and nothing says which is meant.
    """
    fits = list(fits_of(model, tensors))
    good = [fit for fit in fits if not fit.problems]
    if not good:
        raise ValueError("; ".join(fits[0].problems))
    averaged = [fit for fit in good if is_averaged(fit.part)]
    candidates = averaged or good
    chosen = max(candidates, key=fullness)
    others = [fit for fit in candidates if fit is not chosen and not are_equal(chosen, fit)]
    if others:
        parts = ", ".join(repr(fit.part) for fit in (chosen, *others))
        raise ValueError(f"several parts of it would: {parts}; save the one that is meant alone")
    return chosen


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity."""
    return bool(tensor.float().isfinite().all())


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether each entry of a tensor lies in memory: not so for the view of one number as many."""
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def set_classifier(model: nn.Module, head: Mapping[str, torch.Tensor]) -> None:
    """Makes a timm model's classifier as large as `head`, and loads it; removes it where `head` is
    nothing, another kind of module or not finite: a random one must answer nobody."""
    sizes = {len(one) for one in head.values() if one.ndim}
    if len(sizes) == 1 and all(map(is_whole, head.values())):
        classes = sizes.pop()
        if classes != model.num_classes:
            model.reset_classifier(classes)
        names = classifier_names(model)
        own = {key: one.shape for key, one in model.state_dict().items() if is_under(key, names)}
        same = own == {key: one.shape for key, one in head.items()}
        if same and all(map(is_finite, head.values())):
            model.load_state_dict(head, strict=False)
            return
    model.reset_classifier(0)


def load_checkpoint(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: object) -> str:
    """Loads the part of a checkpoint that fits a timm model -> what its names begin with, "" where
    it is the whole. All of the model but its classifier must be there; `num_classes` is 0 where
    that is not.

    Raises:
        WeightsError: nothing fits, or it is not clear what; what would is not finite.
    """
    try:
        fit = choose_fit(model, tensors)
    except ValueError as error:
        name = model.pretrained_cfg.get("architecture", "the model")
        raise WeightsError(f"weights file {path} does not fit {name}: {error}") from error
    wrong = [key for key, one in fit.body.items() if not is_finite(one)]
    if wrong:
        told = f"tensors that are not finite: {counted(wrong)}"
        raise WeightsError(f"weights file {path} holds {told}")
    model.load_state_dict(fit.body, strict=False)  # all that is learnt is there
    set_classifier(model, fit.head)
    return fit.part.removesuffix(".")
