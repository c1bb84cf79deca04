"""`transferlab audit`: what is wrong with a folder of images before anything is trained on it, in words a student understands."""

import json
from collections import Counter, namedtuple
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from .artifacts import machine, new_stamp, prepare_out_dir, save_figure, write_new
from .cache import cache_bound
from .data import SPLITS, find_image_folder, load_images, sub_folders
from .duplicates import (
    find_exact_copies,
    find_near_copies,
    group_copies,
    take_fingerprints,
    to_pillow,
)
from .errors import UserError
from .features import view_blocks
from .plots import plot_audit, plot_images
from .probes import check_suspects, choose_folds, find_suspects, label_probabilities, measure_leaks
from .run import find_run_weights, trim_cache
from .study import STUDY_SETTINGS, Study, freeze_backbone
from .views import anime_views

# A row of audit_findings_{stamp}.csv. kind: one of FINDING_KINDS; path, other_path: relative to the folder that was named ("."
# is the folder itself); serious: what makes the exit code 1; detail: the finding in words. score: of unreadable, placeholder
# and duplicate 1; of near_duplicate the share of equal bits of the perceptual hashes (1 = the same); of outlier 0 to 1, low is
# unusual (CleanVision's score, or the share of images with this colour mode); of label the out-of-fold probability of the
# given label (low is suspicious); of leak the accuracy under random folds minus that under grouped ones.
Finding = namedtuple("Finding", "kind path other_path score serious detail")

FINDING_KINDS = (
    "unreadable",
    "placeholder",
    "duplicate",
    "near_duplicate",
    "outlier",
    "label",
    "leak",
)
ODDITIES = (
    "odd_size",
    "odd_aspect_ratio",
    "blurry",
    "dark",
    "light",
    "low_information",
)  # CleanVision's names
RARE_MODE = 0.05  # a colour mode that at most so many of the images have is an outlier; one image always may be
LISTED = 12  # findings of a kind that are printed; the file has all
SHEET = 24  # label suspects on the contact sheet
LEFTOVERS = (
    ".",
    "Thumbs.db",
    "desktop.ini",
)  # how files begin that an operating system leaves in folders


class PillowPairs:
    """The images of an ImageSet as CleanVision takes them from a torchvision dataset: a tuple with a Pillow image."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return (to_pillow(self.images[index]),)


def check_extras():
    """Makes sure that the packages of the extra "audit" are there.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in ("cleanlab", "cleanvision", "imagehash") if find_spec(name) is None]
    if missing:
        raise UserError(f'audit needs {", ".join(missing)}: pip install "transferlab[audit]"')


def refuse_inside(folder, places):
    """Makes sure that nothing will be written into the folder that is audited.

    Raises:
        UserError: one of `places` lies in it.
    """
    for place in places:
        if Path(place).expanduser().resolve().is_relative_to(Path(folder).expanduser().resolve()):
            raise UserError(
                f"{place} lies in {folder}, into which an audit never writes: give --out and --cache-dir elsewhere"
            )


def rejected_findings(image_set):
    """What could not be loaded: placeholders, and files that are unreadable (serious, unless a system has left them there)."""
    findings = []
    for path, reason in image_set.rejected:
        kind = "placeholder" if reason.startswith("placeholder") else "unreadable"
        findings.append(
            Finding(kind, path, "", 1.0, not Path(path).name.startswith(LEFTOVERS), reason)
        )
    return findings


def copy_findings(image_set, kind, copies, bits):
    """Copies -> findings; those across classes, or across train and val, are serious."""
    findings = []
    for copy in copies:
        labels = [image_set.classes[image_set.labels[i]] for i in (copy.first, copy.second)]
        parts = [image_set.split[i] if image_set.split else None for i in (copy.first, copy.second)]
        across = [
            f"across {what} ({a}, {b})"
            for what, (a, b) in (("classes", labels), ("splits", parts))
            if a != b
        ]
        how = (
            copy.how
            if kind == "duplicate"
            else f"{copy.how}, {copy.distance} of {bits} bits differ"
        )
        paths = image_set.paths[copy.first], image_set.paths[copy.second]
        findings.append(
            Finding(kind, *paths, 1 - copy.distance / bits, bool(across), ", ".join([how, *across]))
        )
    return findings


def find_oddities(image_set):
    """Images of unusual size, shape, sharpness or light, by CleanVision on the decoded images -> findings, the oddest first."""
    from cleanvision import Imagelab

    lab = Imagelab(torchvision_dataset=PillowPairs(image_set.images), verbose=False)
    lab.find_issues({name: {} for name in ODDITIES}, n_jobs=1, verbose=False)
    findings = []
    for name in ODDITIES:
        scores = lab.issues.loc[lab.issues[f"is_{name}_issue"], f"{name}_score"].sort_values(
            kind="stable"
        )
        for index, score in scores.items():
            _, height, width = image_set.images[index].shape
            detail = f"{name.replace('_', ' ')}: {width} x {height} pixels"
            findings.append(
                Finding("outlier", image_set.paths[index], "", float(score), False, detail)
            )
    return findings


def find_rare_modes(image_set, modes):
    """Images whose file has a colour mode (Pillow's name) that hardly any other has -> findings."""
    (common, _), *others = (counts := Counter(modes)).most_common()
    rare = {mode for mode, count in others if count <= max(1, RARE_MODE * len(modes))}
    return [
        Finding(
            "outlier",
            path,
            "",
            counts[mode] / len(modes),
            False,
            f"colour mode {mode}, most are {common}",
        )
        for path, mode in zip(image_set.paths, modes)
        if mode in rare
    ]


def clean_features(image_set, model, weights, cache_dir):
    """Frozen features of all clean images, the whole picture squeezed to 224 x 224 -> (float32 [N, D] array, WeightsInfo).

    Raises:
        UserError: as `freeze_backbone`.
    """
    views, everything = anime_views(), torch.arange(len(image_set.labels))
    indices, settings = {"train": everything[:0], "val": everything}, STUDY_SETTINGS | {"views": 1}
    study = Study(image_set, views, indices, view_blocks(image_set, views, seed=0), settings, 0)
    frozen = freeze_backbone(model, study, weights=weights, cache_dir=cache_dir)
    return frozen.draw("val", 0).numpy(), frozen.info


def label_findings(image_set, probabilities):
    """Likely label errors -> (findings, indices), the most suspicious first."""
    suspects, quality = find_suspects(image_set.labels.numpy(), probabilities)
    findings = []
    for index in suspects:
        given, guess = (
            image_set.classes[image_set.labels[index]],
            image_set.classes[probabilities[index].argmax()],
        )
        detail = f"labelled {given}, looks like {guess} ({probabilities[index].max():.0%})"
        findings.append(
            Finding("label", image_set.paths[index], "", float(quality[index]), False, detail)
        )
    return findings, suspects


def leak_findings(leaks):
    """The leaks that the interval tells from none -> findings about the folder as a whole."""
    return [
        Finding("leak", ".", "", float(leak.drop), False, describe_leak(leak))
        for leak in leaks
        if leak.low > 0
    ]


def describe_leak(leak):
    """One comparison in words: accuracies with their standard deviation over repeats, the drop with its 95 % interval."""
    random, grouped = (
        f"{side.mean():.1%} (± {side.std(ddof=1):.1%})" for side in (leak.random, leak.grouped)
    )
    grouping = {"page": "page", "near_duplicate": "set of copies"}[leak.grouping]
    return (
        f"random folds {random}, folds that keep each {grouping} together {grouped}: a drop of {100 * leak.drop:.1f} points "
        f"[{100 * leak.low:.1f}, {100 * leak.high:.1f}] on the same {leak.images} images ({leak.groups} groups, {leak.folds} folds)"
        f"{'' if leak.low > 0 else '; 0 lies in the interval: no leak is shown'}"
    )


def describe_folder(image_set, folder, modes):
    """The head of the report: what was read, how many of each class, which colour modes."""
    counts = torch.bincount(image_set.labels).tolist()
    least, most = (image_set.classes[counts.index(size)] for size in (min(counts), max(counts)))
    parts = Counter(image_set.split) if image_set.split else {}
    split = ", ".join(f"{part} {count}" for part, count in parts.items()) or "not split"
    unread = (
        [child.name for child in sub_folders(folder) if child.name not in SPLITS] if parts else []
    )
    return [
        f"{image_set.name}{' (synthetic: drawn pictures)' * image_set.synthetic}: {len(image_set.labels)} images in "
        f"{len(counts)} classes; {split}; {len(image_set.rejected)} files left out",
        f"classes: {', '.join(f'{name} {count}' for name, count in zip(image_set.classes, counts))}",
        f"balance: {most} has {max(counts) / min(counts):.1f} times as many as {least}; always answering {most} is right for "
        f"{max(counts) / len(image_set.labels):.1%} of the images",
        f"colour modes: {', '.join(f'{mode} {count}' for mode, count in Counter(modes).most_common())}",
        *(
            f"not looked at: the folder {name}, since only {' and '.join(SPLITS)} are read"
            for name in unread
        ),
    ]


def describe_labels(labels, probabilities, suspects, planted, groups):
    """How far the list of label suspects can be trusted, in words; `planted` is what `check_suspects` returns."""
    if probabilities is None:
        return [
            "not checked: every class needs two images or more that are no copies of each other"
        ]
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    lines = [
        f"a logistic regression on frozen features is right for {accuracy:.1%} of the images it was not fitted on"
    ]
    if planted:
        lines.append(
            f"tried here on {planted['flipped']:.0f} labels changed on purpose (3 times): {planted['recall']:.0%} of them were "
            f"among {planted['flagged']:.0f} suspects, {planted['recall_top']:.0%} among the first {planted['flipped']:.0f}"
        )
    if len(suspects) > 0.1 * len(labels):
        lines.append(
            "so many suspects mean that the model is often wrong, not that the labels are: look at the first ones only"
        )
    return lines


def describe_findings(findings, kind):
    """The findings of one kind as lines, the serious ones first, at most `LISTED` of them."""
    found = sorted(
        (finding for finding in findings if finding.kind == kind),
        key=lambda finding: not finding.serious,
    )
    lines = [
        f"{'! ' if f.serious else '  '}{f.path}{f' = {f.other_path}' * bool(f.other_path)}: {f.detail}"
        for f in found[:LISTED]
    ]
    return (
        lines + [f"  ... and {len(found) - LISTED} more, in the file"] * (len(found) > LISTED)
        if found
        else ["  none"]
    )


def print_report(head, findings, label_lines, leaks):
    """Prints the audit."""
    titles = {
        "unreadable": "Files that cannot be read",
        "placeholder": "Placeholders",
        "duplicate": "Exact duplicates",
        "near_duplicate": "Near duplicates (re-encoded, resized, slightly cropped or mirrored)",
        "outlier": "Unusual images (not wrong by themselves)",
        "label": "Labels worth a second look",
    }
    print("\n".join(head))
    for kind, title in titles.items():
        print(f"\n{title}: {sum(finding.kind == kind for finding in findings)}")
        notes = [f"  {line}" for line in label_lines if kind == "label"]
        print("\n".join(notes + describe_findings(findings, kind)))
    print("\nLeaks: does accuracy fall when related images are never in training and test at once?")
    lines = [describe_leak(leak) for leak in leaks] or [
        "not measured: no pages in file names, no copies, or too few images"
    ]
    print("\n".join(f"  {line}" for line in lines))
    serious = Counter(finding.kind for finding in findings if finding.serious)
    counts = ", ".join(f"{kind} {count}" for kind, count in serious.items())
    print(f"\n{'Serious (marked !): ' + counts if serious else 'Nothing serious was found'}")


def leak_table(image_set, leaks, info):
    """The accuracies behind the leak report, a row for each repeat -> data frame."""
    about = {"data": image_set.digest, "model": info.timm_name, "weights": info.source}
    rows = [
        about
        | {name: getattr(leak, name) for name in ("grouping", "images", "groups", "folds")}
        | {"repeat": repeat, "random": random, "grouped": grouped}
        for leak in leaks
        for repeat, (random, grouped) in enumerate(zip(leak.random, leak.grouped))
    ]
    return pd.DataFrame(rows)


def plot_suspects(image_set, findings, suspects):
    """The contact sheet: the first `SHEET` label suspects (indices), under each its given label and what it looks like."""
    labels = [finding for finding in findings if finding.kind == "label"]
    titles = [finding.detail.replace(", looks", "\nlooks") for finding in labels[:SHEET]]
    images = [image_set.images[index] for index in suspects[:SHEET]]
    heading = f"{image_set.name}: labels worth a second look, the most suspicious first"
    return plot_images(images, titles, columns=min(6, len(images)), heading=heading)


def describe_audit(image_set, findings, leaks, suspects, probabilities, planted, info):
    """What the audit saw and with which backbone, as plain values: what the tables do not hold."""
    labels = image_set.labels.numpy()
    accuracy = (
        None if probabilities is None else float((probabilities.argmax(axis=1) == labels).mean())
    )
    tests = [
        leak._asdict() | {name: getattr(leak, name).tolist() for name in ("random", "grouped")}
        for leak in leaks
    ]
    return {
        "data": image_set.name,
        "data_digest": image_set.digest,
        "synthetic": image_set.synthetic,
        "n": len(labels),
        "classes": dict(zip(image_set.classes, torch.bincount(image_set.labels).tolist())),
        "rejected": image_set.rejected,
        "counts": Counter(finding.kind for finding in findings),
        "serious": Counter(f.kind for f in findings if f.serious),
        "out_of_fold_accuracy": accuracy,
        "suspects": len(suspects),
        "planted": planted,
        "leaks": tests,
        "weights": {info.name: info._asdict()},
    } | machine()


def write_audit(out, stamp, image_set, findings, leaks, suspects, described, info):
    """Writes findings, leak accuracies, the summary, its figure and the contact sheet -> list of Path."""
    findings_table = pd.DataFrame(findings, columns=Finding._fields)
    tables = {"findings": findings_table} | (
        {"leak": leak_table(image_set, leaks, info)} if leaks else {}
    )
    written = []
    for part, table in tables.items():
        path = out / "result" / f"audit_{part}_{stamp}.csv"
        written.append(write_new(path, lambda temporary: table.to_csv(temporary, index=False)))
    text = json.dumps(described, indent=1, default=float) + "\n"
    path = out / "result" / f"audit_summary_{stamp}.json"
    written.append(write_new(path, lambda temporary: temporary.write_text(text, encoding="utf-8")))
    figures = {
        "audit": plot_audit(
            findings_table, FINDING_KINDS, image_set, leaks, f"{info.name}, weights: {info.source}"
        )
    }
    if len(suspects):
        figures["audit_labels"] = plot_suspects(image_set, findings, suspects)
    for name, figure in figures.items():
        written.append(save_figure(figure, out, name, stamp=stamp))
        plt.close(figure)
    return written


def below(prefix, findings):
    """The same findings, their paths below `prefix` (the image folder may lie deeper than the folder that was named)."""
    moved = (
        [(prefix / path).as_posix() if path else "" for path in (f.path, f.other_path)]
        for f in findings
    )
    return [
        finding._replace(path=path, other_path=other)
        for finding, (path, other) in zip(findings, moved)
    ]


def run_audit(folder, *, model="efficientnet_lite0", weights="", out=".", cache_dir=""):
    """Audits an image folder: prints the report, writes it to `out` -> exit code: 1 where something is serious, else 0.

    Serious are unreadable files, placeholders, and duplicates, exact or near, across classes or across train and val.

    Raises:
        UserError: as `check_extras`, `refuse_inside`, `load_images`, `find_run_weights` and `freeze_backbone`.
    """
    check_extras()
    found, bound = find_image_folder(folder), cache_bound()
    refuse_inside(
        folder, [out, *([cache_dir] if cache_dir else []), *([] if weights else ["weights"])]
    )
    out, weights = prepare_out_dir(out), find_run_weights(weights, Path("weights"))
    image_set = load_images(found)
    features, info = clean_features(image_set, model, weights, cache_dir)
    trim_cache(cache_dir, bound)
    prints = take_fingerprints(image_set, found)
    exact = find_exact_copies(prints)
    near, bits = find_near_copies(prints, exact), prints.bits.shape[1]
    findings = rejected_findings(image_set) + copy_findings(image_set, "duplicate", exact, bits)
    findings += copy_findings(image_set, "near_duplicate", near, bits)
    findings += find_oddities(image_set) + find_rare_modes(image_set, prints.mode)
    labels, groups = image_set.labels.numpy(), group_copies(exact + near, len(image_set.labels))
    probabilities, planted, suspects = None, {}, np.array([], dtype=int)
    if choose_folds(labels, groups):
        probabilities = label_probabilities(features, labels, groups)
        found_labels, suspects = label_findings(image_set, probabilities)
        findings, planted = findings + found_labels, check_suspects(features, labels, groups)
    leaks = measure_leaks(features, labels, image_set.paths, groups)
    findings += leak_findings(leaks)
    findings = below(found.relative_to(Path(folder).expanduser()), findings)
    head = describe_folder(image_set, found, prints.mode)
    print_report(
        head, findings, describe_labels(labels, probabilities, suspects, planted, groups), leaks
    )
    random = " (random weights: what is said of labels and leaks means little)" * (
        info.kind == "random"
    )
    print(f"Features: {info.name}, weights: {info.source}{random}\nWritten:")
    described = describe_audit(image_set, findings, leaks, suspects, probabilities, planted, info)
    written = write_audit(
        out, new_stamp(out), image_set, findings, leaks, suspects, described, info
    )
    print("\n".join(f"  {path}" for path in written))
    return int(any(finding.serious for finding in findings))
