"""Records that were published before schema 2, read as today's."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from .datasets import known_augmentations
from .pretrained import short_label
from .records import RunRecord, StudyRecord, from_plain, read_plain
from .train import Settings
from .views import info_of

Record = TypeVar("Record", bound=RunRecord)

OLD_KEYS = (  # what schema 1 said of data, weights and machine, in several shapes
    "data",
    "data_digest",
    "data_name",
    "synthetic",
    "n",
    "classes",
    "rejected",
    "weights",
    "processor",
    "threads",
    "versions",
    "precision",
    "device",
    "machine",
    "transforms",
)


def read_record(path: str | Path, kind: type[Record]) -> Record:
    """A record of any schema.

    Raises:
        OSError, KeyError, TypeError, ValueError: it is missing, damaged, or no such record.
    """
    plain = read_plain(path)
    if "schema" not in plain:
        plain = upgrade(plain, kind, Path(path))
    return from_plain(kind, plain)


def upgrade(old: Mapping[str, Any], kind: type[Record], path: Path) -> dict[str, Any]:
    """The plain values of schema 1 as those of today."""
    known = {one.name for one in fields(kind)}
    rest = {key: value for key, value in old.items() if key not in OLD_KEYS}
    new = {
        "schema": 1,
        "kind": old_kind(path),
        "stamp": path.stem[-len("YYYYmmdd_HHMMSS") :],
        "data": old_data(old),
        "weights": old_weights(old.get("weights", {})),
        "machine": old_machine(old),
    }
    settings = rest.get("settings")
    if isinstance(settings, Mapping) and "views" in settings:
        new["settings"] = old_settings(settings)
        new["seed"] = settings.get("seed", rest.pop("seed", None))
        del rest["settings"]
    known.discard("settings")  # peers' are a mapping of systems: a fact of their own
    if "class_sizes" in known:  # of an audit
        new["class_sizes"] = old["classes"]
    if issubclass(kind, StudyRecord):
        low, high = old["accuracy_interval"]
        new["accuracy_interval"] = {"low": low, "high": high}
        del rest["accuracy_interval"]
    new |= {key: value for key, value in rest.items() if key in known and key not in new}
    if "facts" in known:
        new["facts"] = {key: value for key, value in rest.items() if key not in new}
    return new


def old_kind(path: Path) -> str:
    """The kind of a run from its file's name: techniques_gpu_20260101_120000.json."""
    name = path.stem[: -len("_YYYYmmdd_HHMMSS")]
    for kind in ("compare", "audit"):
        if name == f"{kind}_summary":
            return kind
    return "study" if name.endswith("_summary") else name


def old_data(old: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The datasets: {name: digest}, or one by its name or its digest with entries of its own."""
    data = old.get("data", {})
    if isinstance(data, Mapping):
        return [{"name": name, "digest": digest} for name, digest in data.items()]
    named = old.get("data_name")  # then "data" is the digest
    rejected = [{"path": path, "reason": reason} for path, reason in old.get("rejected", ())]
    one = {
        "name": named or data,
        "digest": data if named else old.get("data_digest", ""),
        "n": old.get("n", old.get("n_train", 0) + old.get("n_val", 0)),
        "classes": list(old.get("classes", ())),
        "synthetic": old.get("synthetic", False),
        "rejected": rejected,
    }
    if "transforms" in old:
        one["augmentation"] = old_augmentation(old["transforms"])
    return [one]


def old_weights(weights: Any) -> list[dict[str, Any]]:
    """The backbones: {name: info}, {name: source}, one info, or one source."""
    if isinstance(weights, str):
        weights = {"": weights}
    if "sha256" in weights:
        weights = {weights["name"]: weights}
    return [old_backbone(name, info) for name, info in weights.items()]


def old_backbone(name: str, info: Any) -> dict[str, Any]:
    """One backbone's weights, from all that was said of them or their source alone."""
    if isinstance(info, str):
        kind = "random" if info.startswith("random") else "file"
        info = {"name": name, "timm_name": "", "kind": kind, "source": info, "sha256": ""}
    random = info["kind"] == "random"
    return {**info, "label": "random" if random else short_label(info["source"])}


def old_machine(old: Mapping[str, Any]) -> dict[str, Any]:
    """The machine; what was not said is empty."""
    processor = old.get("processor", "")
    device = "cuda" if "NVIDIA" in processor else "cpu"
    return {
        "device": old.get("device", device),
        "precision": old.get("precision", ""),
        "processor": processor,
        "threads": old.get("threads", 0),
        "versions": old.get("versions", {}),
    }


def old_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings; the views of runs published then were random ones in turn."""
    known = {one.name for one in fields(Settings)}
    return {"rule": "cycle"} | {key: settings[key] for key in settings if key in known}


def old_augmentation(transforms: Mapping[str, str]) -> dict[str, Any]:
    """The augmentation that prints itself so; without a name where none does."""
    train = transforms["train"]
    clean = transforms["val"]
    for make in known_augmentations().values():
        info = info_of(make(224))
        if (info.train, info.clean) == (train, clean):
            return asdict(info)
    return {"name": "", "version": 1, "size": 224, "train": train, "clean": clean}
