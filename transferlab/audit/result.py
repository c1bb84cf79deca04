"""The audit of an image set from start to end: who looks at it, and what was found."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..backbones import input_size
from ..data import Fold, ImageSet
from ..machine import Machine
from ..pretrained import WeightsInfo
from ..store import NO_STORE, Store
from ..study import Study, freeze_backbone
from ..train import Settings
from ..views import Augmentation, Renderer, faces_augmentation
from .confirm import confirm_copies
from .copies import (
    find_exact_copies,
    find_near_pairs,
    find_neighbours,
    group_copies,
    take_fingerprints,
)
from .findings import (
    Finding,
    copy_findings,
    label_findings,
    leak_findings,
    rejected_findings,
)
from .labels import LabelCheck, check_labels
from .leaks import LeakTest, measure_leaks
from .oddities import find_oddities, find_rare_modes

SEED = 0  # of the head that is put on the backbone and not used


@dataclass(frozen=True, kw_only=True, eq=False)
class CleanFeatures:
    """Frozen features of all images, the whole picture squeezed to the backbone's own size."""

    values: np.ndarray  # float32 [N, D]
    augmentation: Augmentation  # whose clean view they are of
    weights: WeightsInfo  # of the backbone


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditResult:
    """What was found in one image folder."""

    image_set: ImageSet
    modes: tuple[str, ...]  # Pillow's name of each file's colours
    findings: tuple[Finding, ...]
    look_alikes: int  # pairs with like hashes whose pixels or colours differ: no findings
    labels: LabelCheck | None  # None: a class has too few images that are no copies of each other
    leaks: tuple[LeakTest, ...]  # what could be measured, shown or not
    features: CleanFeatures  # what tells of labels and leaks

    @property
    def weights(self) -> WeightsInfo:
        """Of the backbone that has looked at labels and leaks."""
        return self.features.weights

    @property
    def class_sizes(self) -> dict[str, int]:
        """How many images each class has."""
        sizes = torch.bincount(self.image_set.labels).tolist()
        return dict(zip(self.image_set.classes, sizes))

    @property
    def part_sizes(self) -> dict[str, dict[str, int]]:
        """How many images each class has in train, val and test; empty where images came
        unsplit."""
        classes = self.image_set.classes
        sizes: dict[str, dict[str, int]] = {}
        for part, label in zip(self.image_set.split or (), self.image_set.labels.tolist()):
            of_part = sizes.setdefault(part, dict.fromkeys(classes, 0))
            of_part[classes[label]] += 1
        return sizes

    @property
    def counts(self) -> Counter[str]:
        """How many findings there are of each kind."""
        return Counter(finding.kind for finding in self.findings)

    @property
    def serious(self) -> Counter[str]:
        """How many serious findings there are of each kind."""
        return Counter(finding.kind for finding in self.findings if finding.serious)

    def of_kind(self, kind: str) -> list[Finding]:
        """The findings of one kind."""
        return [finding for finding in self.findings if finding.kind == kind]


def clean_features(
    image_set: ImageSet,
    *,
    model: str,
    weights: str,
    machine: Machine,
    store: Store = NO_STORE,
) -> CleanFeatures:
    """Computes the frozen features of all clean images, at the backbone's own size.

    Raises:
        UserError: as `input_size` and `freeze_backbone`.
    """
    everything = torch.arange(len(image_set.labels))
    augmentation = faces_augmentation(input_size(model))
    study = Study(
        renderer=Renderer(image_set, augmentation, seed=SEED),
        fold=Fold(train=everything[:0], val=everything),
        settings=Settings(),
        machine=machine,
        seed=SEED,
        store=store,
    )
    frozen = freeze_backbone(model, study, weights=weights)
    return CleanFeatures(
        values=frozen.features.clean.numpy(), augmentation=augmentation, weights=frozen.info
    )


def audit_images(
    image_set: ImageSet, features: CleanFeatures, *, folder: Path, root: Path
) -> AuditResult:
    """Looks at the images of `folder` for everything that may be wrong with them.

    It lies in `root`, or is that; the paths of the findings are relative to `root`.

    Raises:
        DataError: as `take_fingerprints`.
    """
    prints = take_fingerprints(image_set)
    exact = find_exact_copies(prints)
    neighbours = find_neighbours(prints, exact)
    candidates = find_near_pairs(neighbours)
    near = confirm_copies(image_set.images, candidates, neighbours)
    groups = group_copies(exact + near, len(image_set.labels))
    given = image_set.labels.numpy()
    labels = check_labels(features.values, given, groups)
    leaks = measure_leaks(features.values, given, image_set.paths, groups)
    findings = [
        *rejected_findings(image_set.rejected),
        *copy_findings(image_set, "duplicate", exact),
        *copy_findings(image_set, "near_duplicate", near),
        *find_oddities(image_set),
        *find_rare_modes(image_set, prints.modes),
    ]
    if labels is not None:
        findings += label_findings(image_set, labels)
    findings += leak_findings(leaks)
    prefix = folder.relative_to(root)
    return AuditResult(
        image_set=image_set,
        modes=prints.modes,
        findings=tuple(finding.below(prefix) for finding in findings),
        look_alikes=len(candidates) - len(near),
        labels=labels,
        leaks=tuple(leaks),
        features=features,
    )
