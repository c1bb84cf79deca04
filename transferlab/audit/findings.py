"""What an audit finds, a row each: files left out, copies, suspicious labels, leaks."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath
from unicodedata import normalize

from ..data import ImageSet, Rejected
from ..errors import printable
from .copies import Copy
from .labels import LabelCheck
from .leaks import LeakTest, describe_leak

FINDING_KINDS = (
    "unreadable",
    "placeholder",
    "duplicate",
    "near_duplicate",
    "outlier",
    "label",
    "leak",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A row of audit_findings_{stamp}.csv.

    score: of unreadable, placeholder and duplicate 1; of near_duplicate the share of what the
    aligned pictures show that is the same (1 = all); of outlier 0 to 1, low is unusual
    (CleanVision's score, or the share of images with this colour mode); of label the out-of-fold
    probability of the given label (low is suspicious); of leak the accuracy under random folds
    minus that under grouped ones.
    """

    kind: str  # one of FINDING_KINDS
    path: str  # relative to the folder that was named; "." is the folder itself
    other_path: str = ""  # what it is a copy of
    score: float
    serious: bool = False  # makes the exit code 1
    detail: str  # the finding in words

    def below(self, prefix: PurePath) -> "Finding":
        """The same finding with its paths below `prefix`, since the image folder may lie deeper
        than the folder that was named."""
        shown = PurePath(printable(prefix.as_posix()))
        path = (shown / self.path).as_posix()
        other_path = (shown / self.other_path).as_posix() if self.other_path else ""
        return replace(self, path=path, other_path=other_path)


def class_of(image_set: ImageSet, index: int) -> str:
    """The name of an image's class."""
    label = int(image_set.labels[index])
    return image_set.classes[label]


def rejected_findings(rejected: Iterable[Rejected]) -> list[Finding]:
    """What could not be loaded: placeholders, and files that are unreadable. Both are serious."""
    findings = []
    for file in rejected:
        is_placeholder = file.reason.startswith("placeholder")
        finding = Finding(
            kind="placeholder" if is_placeholder else "unreadable",
            path=file.path,
            score=1.0,
            serious=True,
            detail=file.reason,
        )
        findings.append(finding)
    return findings


def borders_crossed(image_set: ImageSet, copy: Copy) -> list[str]:
    """In words, which borders lie between an image and its copy: of classes, of train, val and
    test."""
    borders = []
    label = class_of(image_set, copy.first)
    other_label = class_of(image_set, copy.second)
    if label != other_label:
        borders.append(f"across classes ({label}, {other_label})")
    if image_set.split is None:
        return borders
    part = image_set.split[copy.first]
    other_part = image_set.split[copy.second]
    if part != other_part:
        borders.append(f"across splits ({part}, {other_part})")
    return borders


def copy_findings(image_set: ImageSet, kind: str, copies: Iterable[Copy]) -> list[Finding]:
    """Copies as findings; those across classes, or across train, val and test, are serious."""
    findings = []
    for copy in copies:
        path = image_set.paths[copy.first]
        other_path = image_set.paths[copy.second]
        borders = borders_crossed(image_set, copy)
        told = [copy.how]
        if kind == "near_duplicate":
            told.append(f"{copy.share:.0%} of what they show is the same")
        if normalize("NFC", path) == normalize("NFC", other_path):
            told.append("two files, whose names are the same letters in other bytes (NFC, NFD)")
        finding = Finding(
            kind=kind,
            path=path,
            other_path=other_path,
            score=copy.share,
            serious=bool(borders),
            detail=", ".join([*told, *borders]),
        )
        findings.append(finding)
    return findings


def label_findings(image_set: ImageSet, check: LabelCheck) -> list[Finding]:
    """Likely label errors as findings, the most suspicious first."""
    findings = []
    for index in check.suspects:
        probabilities = check.probabilities[index]
        given = class_of(image_set, index)
        guess = image_set.classes[probabilities.argmax()]
        finding = Finding(
            kind="label",
            path=image_set.paths[index],
            score=float(check.quality[index]),
            detail=f"labelled {given}, looks like {guess} ({probabilities.max():.0%})",
        )
        findings.append(finding)
    return findings


def leak_findings(leaks: Iterable[LeakTest]) -> list[Finding]:
    """The leaks that are shown, as findings about the folder as a whole."""
    findings = []
    for leak in leaks:
        if leak.shown:
            detail = describe_leak(leak)
            findings.append(Finding(kind="leak", path=".", score=leak.drop, detail=detail))
    return findings
