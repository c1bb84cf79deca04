"""The systems by name: what each runs, with which settings, and what it depends on."""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transferlab.train import Settings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 5  # of the systems that stop early


@dataclass(frozen=True, kw_only=True)
class System:
    """A way to train the head."""

    module: str  # of benchmarks.peer_systems
    function: str = "run"  # there
    early: bool = False  # whether it stops early
    default_views: bool = False  # the library's; without them each epoch sees a fresh view

    @property
    def ours(self) -> bool:
        """Whether it is this library."""
        return self.module == "ours"

    @property
    def always_whole(self) -> bool:
        """Whether it runs whole in short rounds too."""
        return self.ours or self.early

    @property
    def libraries(self) -> tuple[str, ...]:
        """What it needs beyond transferlab."""
        return LIBRARIES.get(self.module, ())


LIBRARIES = {  # by module
    "with_fastai": ("fastai",),
    "with_lightning": ("lightning",),
    "with_hf": ("transformers", "accelerate"),
}
SYSTEMS = {
    "study": System(module="plain_loop", function="run_study"),
    "tuned": System(module="plain_loop", function="run_tuned"),
    "fastai": System(module="with_fastai"),
    "lightning": System(module="with_lightning"),
    "hf": System(module="with_hf"),
    "fastai_tuned": System(module="with_fastai", function="run_tuned"),
    "lightning_tuned": System(module="with_lightning", function="run_tuned"),
    "hf_tuned": System(module="with_hf", function="run_tuned"),
    "ours_same_views": System(module="ours"),
    "ours_default": System(module="ours", default_views=True),
    "ours_fp32": System(module="ours", function="run_fp32", default_views=True),
    "study_early": System(module="plain_loop", function="run_study", early=True),
    "ours_early": System(module="ours", default_views=True, early=True),
}


def settings_of(name: str, epochs: int) -> Settings:
    """The settings of a system's run."""
    system = SYSTEMS[name]
    patience = PATIENCE if system.early else 0
    if system.default_views:
        return Settings(epochs=epochs, patience=patience)
    return Settings(epochs=epochs, patience=patience, views=epochs, rule="cycle")


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
