"""The systems by name: what each runs, with which settings, and what it depends on."""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transferlab.train import Settings

ROOT = Path(__file__).resolve().parents[2]

# What a system is asked for.
STUDY = "study"  # the study: a head trained for 30 epochs, validated after each
FOLDS = "folds"  # a linear probe on 5 x 5 folds of all images, its strength chosen inside
SPLIT = "split"  # an exact classifier on the study's one split


@dataclass(frozen=True, kw_only=True)
class System:
    """A way to do a job."""

    label: str  # in a reader's words
    module: str  # of benchmarks.peer_systems
    function: str = "run"  # there
    job: str = STUDY
    default_views: bool = False  # the library's; without them each epoch sees a fresh view

    @property
    def ours(self) -> bool:
        """Whether it is this library."""
        return self.module == "ours"

    @property
    def always_whole(self) -> bool:
        """Whether it runs whole in short rounds too."""
        return self.ours or self.job != STUDY

    @property
    def libraries(self) -> tuple[str, ...]:
        """What it needs beyond transferlab."""
        return LIBRARIES.get(self.module, ())


LIBRARIES = {  # by module
    "with_fastai": ("fastai",),
    "with_lightning": ("lightning",),
    "with_hf": ("transformers", "accelerate"),
    "with_vyntri": ("vyntri",),
}
SYSTEMS = {
    "study": System(label="the published loop", module="plain_loop", function="run_study"),
    "tuned": System(label="that loop, tuned", module="plain_loop", function="run_tuned"),
    "fastai": System(label="fastai", module="with_fastai"),
    "lightning": System(label="Lightning", module="with_lightning"),
    "hf": System(label="Hugging Face Trainer", module="with_hf"),
    "fastai_tuned": System(label="fastai, tuned", module="with_fastai", function="run_tuned"),
    "lightning_tuned": System(
        label="Lightning, tuned", module="with_lightning", function="run_tuned"
    ),
    "hf_tuned": System(label="Hugging Face, tuned", module="with_hf", function="run_tuned"),
    "ours_same_views": System(label="ours, fresh views", module="ours"),
    "ours_default": System(label="ours", module="ours", default_views=True),
    "ours_fp32": System(label="ours, fp32", module="ours", function="run_fp32", default_views=True),
    "sklearn": System(label="timm + scikit-learn", module="with_sklearn", job=FOLDS),
    "sklearn_tuned": System(
        label="timm + scikit-learn, tuned", module="with_sklearn", function="run_tuned", job=FOLDS
    ),
    "ours_probe": System(label="ours", module="ours", function="run_probe", job=FOLDS),
    "ours_probe_fp32": System(
        label="ours, fp32", module="ours", function="run_probe_fp32", job=FOLDS
    ),
    "vyntri": System(label="Vyntri, one split", module="with_vyntri", job=SPLIT),
    "ours_probe_split": System(
        label="ours, one split", module="ours", function="run_split", job=SPLIT
    ),
    "ours_probe_split_fp32": System(
        label="ours, one split, fp32", module="ours", function="run_split_fp32", job=SPLIT
    ),
}


def settings_of(name: str, epochs: int) -> Settings | None:
    """The settings of a system's head; a probe has none."""
    system = SYSTEMS[name]
    if system.job != STUDY:
        return None
    if system.default_views:
        return Settings(epochs=epochs, patience=0)
    return Settings(epochs=epochs, patience=0, views=epochs, rule="cycle")


def library_versions(name: str) -> dict[str, str | None]:
    """The versions of what a system needs beyond transferlab; None where it is missing."""
    found: dict[str, str | None] = {}
    for library in SYSTEMS[name].libraries:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = None
    return found


def leave_out_missing(systems: Sequence[str]) -> list[str]:
    """The systems whose libraries are installed; says which are left out."""
    left = []
    advice = 'pip install -e ".[bench]" in a clone'
    for system in systems:
        versions = library_versions(system)
        missing = [library for library, version in versions.items() if version is None]
        if missing:
            print(f"left out: {system} ({missing[0]} is not installed: {advice})")
        else:
            left.append(system)
    return left


def source_digest(name: str) -> str:
    """SHA-256 over the code that a system's time depends on: its own file and common.py, for ours
    all of transferlab."""
    system = SYSTEMS[name]
    folder = ROOT / "benchmarks/peer_systems"
    files = [folder / f"{system.module}.py", folder / "common.py"]
    if system.ours:
        files += sorted((ROOT / "transferlab").glob("*.py"))
    code = b"\0".join(file.read_bytes() for file in files)
    return hashlib.sha256(code).hexdigest()
