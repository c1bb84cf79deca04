"""The audit in words, for the terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ..errors import first_lines
from .copies import CANDIDATE_BITS, HASH_BITS
from .findings import Finding
from .labels import LabelCheck
from .leaks import describe_leak
from .result import AuditResult

LISTED = 12  # findings of a kind, and notes, that are printed; the files have all
MANY_SUSPECTS = 0.1  # of the labels: more of them accuse the model
TITLES = {
    "unreadable": "Files that cannot be read",
    "placeholder": "Placeholders",
    "duplicate": "Exact duplicates",
    "near_duplicate": "Near duplicates (re-encoded, resized, cropped, mirrored, partly covered)",
    "outlier": "Unusual images (not wrong by themselves)",
    "label": "Labels worth a second look",
}


def list_counts(counts: Mapping[str, int]) -> str:
    """{"ants": 3, "bees": 4} -> "ants 3, bees 4"."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def describe_contents(audit: AuditResult) -> str:
    """How many images of which split were read."""
    image_set = audit.image_set
    drawn = " (synthetic: drawn pictures)" if image_set.synthetic else ""
    images = f"{len(image_set.labels)} images in {len(image_set.classes)} classes"
    split = list_counts(Counter(image_set.split)) if image_set.split else "not split"
    left_out = f"{len(image_set.rejected)} files left out"
    return f"{image_set.name}{drawn}: {images}; {split}; {left_out}"


def describe_balance(audit: AuditResult) -> str:
    """How far apart the sizes of the classes are."""
    sizes = audit.class_sizes
    most = max(sizes, key=sizes.__getitem__)
    least = min(sizes, key=sizes.__getitem__)
    if sizes[most] == sizes[least]:
        chance = f"always answering the same is right for {1 / len(sizes):.1%} of them"
        return f"balance: every class has {sizes[most]} images; {chance}"
    times = sizes[most] / sizes[least]
    share = sizes[most] / len(audit.image_set.labels)
    ratio = f"{most} has {times:.1f} times as many as {least}"
    return f"balance: {ratio}; always answering {most} is right for {share:.1%} of the images"


def describe_folder(audit: AuditResult) -> list[str]:
    """The head of the report: what was read and what was not, how many of each class, which colour
    modes."""
    modes = dict(Counter(audit.modes).most_common())
    parts = [f"  in {part}: {list_counts(sizes)}" for part, sizes in audit.part_sizes.items()]
    return [
        describe_contents(audit),
        f"classes: {list_counts(audit.class_sizes)}",
        *parts,
        describe_balance(audit),
        f"colour modes: {list_counts(modes)}",
        *describe_notes(audit.image_set.notes),
    ]


def describe_notes(notes: Sequence[str]) -> list[str]:
    """What was not read, taken together or assumed, as lines, at most `LISTED` of them."""
    lines = [f"note: {note}" for note in notes]
    return first_lines(lines, LISTED, "... and {} more, in the summary")


def describe_look_alikes(audit: AuditResult) -> list[str]:
    """How many pairs were looked at as copies and are none."""
    if not audit.look_alikes:
        return []
    alike = (
        f"{audit.look_alikes} more pairs are within {CANDIDATE_BITS} of {HASH_BITS} bits by hash"
    )
    return [f"  {alike}, but not the same in pixels and colours: not listed"]


def describe_labels(check: LabelCheck | None) -> list[str]:
    """How far the list of label suspects can be trusted."""
    if check is None:
        return [
            "not checked: every class needs two images or more that are no copies of each other"
        ]
    model = "a logistic regression on frozen features"
    lines = [f"{model} is right for {check.accuracy:.1%} of the images it was not fitted on"]
    if check.planted is not None:
        planted = check.planted
        tried = f"tried here on {planted.flipped:.0f} labels changed on purpose (3 times)"
        found = f"{planted.recall:.0%} of them were among {planted.flagged:.0f} suspects"
        first = f"{planted.recall_top:.0%} among the first {planted.flipped:.0f}"
        lines.append(f"{tried}: {found}, {first}")
    if len(check.suspects) > MANY_SUSPECTS * len(check.quality):
        meaning = "so many suspects mean that the model is often wrong, not that the labels are"
        lines.append(f"{meaning}: look at the first ones only")
    return lines


def describe_finding(finding: Finding) -> str:
    """One finding as a line."""
    mark = "!" if finding.serious else " "
    other = f" = {finding.other_path}" if finding.other_path else ""
    return f"{mark} {finding.path}{other}: {finding.detail}"


def describe_kind(audit: AuditResult, kind: str) -> list[str]:
    """The findings of one kind as lines, the serious ones first, at most `LISTED` of them."""
    found = sorted(audit.of_kind(kind), key=lambda finding: not finding.serious)
    if not found:
        return ["  none"]
    lines = [describe_finding(finding) for finding in found]
    return first_lines(lines, LISTED, "  ... and {} more, in the file")


def describe_leaks(audit: AuditResult) -> list[str]:
    """What came out of each comparison of random and grouped folds."""
    if not audit.leaks:
        return ["not measured: no pages in file names, no copies, or too few images"]
    return [describe_leak(leak) for leak in audit.leaks]


def describe_weights(audit: AuditResult) -> str:
    """Which backbone looked at labels and leaks."""
    weights = audit.weights
    line = f"Features: {weights.name}, weights: {weights.source}"
    if weights.measures_transfer:
        return line
    return f"{line} (random weights: what is said of labels and leaks means little)"


def describe_audit(audit: AuditResult) -> str:
    """The whole report."""
    lines = describe_folder(audit)
    for kind, title in TITLES.items():
        lines += ["", f"{title}: {audit.counts[kind]}"]
        if kind == "label":
            lines += [f"  {line}" for line in describe_labels(audit.labels)]
        lines += describe_kind(audit, kind)
        if kind == "near_duplicate":
            lines += describe_look_alikes(audit)
    question = "does accuracy fall when related images are never in training and test at once?"
    lines += ["", f"Leaks: {question}"]
    lines += [f"  {line}" for line in describe_leaks(audit)]
    serious = list_counts(audit.serious)
    lines += ["", f"Serious (marked !): {serious}" if serious else "Nothing serious was found"]
    lines.append(describe_weights(audit))
    return "\n".join(lines)
