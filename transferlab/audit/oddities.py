"""Images of unusual size, shape, sharpness, light or colour mode: not wrong by themselves."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd
import torch
from PIL import Image

from ..data import ImageSet
from .copies import to_pillow
from .findings import Finding

# CleanVision's names.
ODDITIES = ("odd_size", "odd_aspect_ratio", "blurry", "dark", "light", "low_information")
RARE_MODE = 0.05  # a colour mode that at most so many have is an outlier; one image always may be


class PillowPairs:
    """Images as CleanVision takes them from a torchvision dataset: a tuple with a Pillow image."""

    def __init__(self, images: Sequence[torch.Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image]:
        picture = to_pillow(self.images[index])
        return (picture,)


def score_oddities(images: Sequence[torch.Tensor]) -> pd.DataFrame:
    """CleanVision's verdicts on decoded images.

    -> a row an image; for each of `ODDITIES` columns is_{name}_issue and {name}_score
    """
    from cleanvision import Imagelab

    lab = Imagelab(torchvision_dataset=PillowPairs(images), verbose=False)
    wanted: dict[str, dict[str, float]] = {name: {} for name in ODDITIES}  # no options
    lab.find_issues(wanted, n_jobs=1, verbose=False)
    return lab.issues


def find_oddities(image_set: ImageSet) -> list[Finding]:
    """Images of unusual size, shape, sharpness or light as findings, the oddest first."""
    issues = score_oddities(image_set.images)
    findings = []
    for name in ODDITIES:
        is_odd = issues[f"is_{name}_issue"]
        scores = issues.loc[is_odd, f"{name}_score"].sort_values(kind="stable")
        words = name.replace("_", " ")
        for index, score in scores.items():
            _, height, width = image_set.images[index].shape
            finding = Finding(
                kind="outlier",
                path=image_set.paths[index],
                score=float(score),
                detail=f"{words}: {width} x {height} pixels",
            )
            findings.append(finding)
    return findings


def find_rare_modes(image_set: ImageSet, modes: Sequence[str]) -> list[Finding]:
    """Images whose file has a colour mode (Pillow's name) that hardly any other has, where more
    than half have one and the same."""
    counts = Counter(modes)
    (common, number), *others = counts.most_common()
    if 2 * number <= len(modes):
        return []
    most = max(1, RARE_MODE * len(modes))
    rare = {mode for mode, count in others if count <= most}
    findings = []
    for path, mode in zip(image_set.paths, modes):
        if mode in rare:
            finding = Finding(
                kind="outlier",
                path=path,
                score=counts[mode] / len(modes),
                detail=f"colour mode {mode}, most are {common}",
            )
            findings.append(finding)
    return findings
