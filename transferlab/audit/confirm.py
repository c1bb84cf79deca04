"""Whether two pictures with like hashes are one picture: by their aligned pixels and colours, and
against what they share with others of the folder."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .align import align, blur, luminance, shrink, stack_pictures
from .copies import Copy, Neighbours

BATCH = 64  # pairs aligned at a time
WINDOW = 7  # pixels of 64: what is compared at once
NOISE = 2.0  # grey levels of 256 that mean nothing
DETAIL = 4.0  # standard deviation within a window from which on it shows something
LIKENESS = 0.9  # structure, as SSIM defines it, from which on a window is the same
OTHER_COLOUR = 30.0  # levels by which the mean light or colour of a window must not differ
COLOURED = 12.0  # levels between channels that the most coloured twentieth of a picture has
# The thresholds were chosen on `benchmarks/copies.py`. There, of the copies of 50 manga faces and
# of 50 ants and bees, 549 and 545 of 550 are found (by the hash alone, within 60 bits: 543 and 531)
# and no other pair; of the 13,000 pairs of look-alikes across classes (fruit, hands, X-rays) that
# the hash takes for copies, 4 are left. A mask over a fifth of a photograph: 92 %, hash 74 %.
FEWEST = 30  # windows (of 3,364) with something to compare, from which on a picture can be told
SAME_SHARE = 0.5  # of the windows that tell, so many must be the same: half may be pasted over
OWN_SHARE = 0.15  # of all that show something, so many must be the same here, not elsewhere
OWN_RESIDUAL = 0.7  # what is left over there, against the same window in look-alikes
OWN_MISMATCH = 0.2  # the share that differs, against that of look-alikes, where these share much
WHOLE = 0.97  # a look-alike that is the same all over is a copy itself, and no background
LOOK_ALIKES = 8  # of the nearest that are no copies, so many tell what is background


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowMatch:
    """A picture compared with B others, window by window, [B, M, M] each."""

    told: Tensor  # bool: there is something to compare
    same: Tensor  # bool: and it is the same
    residual: Tensor  # float32: what differs in light and colour, in levels of 256

    @property
    def shares(self) -> Tensor:
        """Of what there is to compare, the share that is the same [B]."""
        return self.counts(self.same) / self.counts(self.told).clamp_min(1)

    def joined(self, other: "WindowMatch") -> "WindowMatch":
        """This one and another of the same picture."""
        return WindowMatch(
            told=torch.cat([self.told, other.told]),
            same=torch.cat([self.same, other.same]),
            residual=torch.cat([self.residual, other.residual]),
        )

    @staticmethod
    def counts(windows: Tensor) -> Tensor:
        """How many windows of bool [B, M, M] are true [B]."""
        return windows.flatten(1).sum(dim=1).float()


def window_means(values: Tensor) -> Tensor:
    """Means over every window of [B, C, n, n] -> [B, C, M, M]."""
    return F.avg_pool2d(values, WINDOW, stride=1)


def opponent_colours(pictures: Tensor) -> Tensor:
    """RGB [B, 3, n, n] -> red against green and blue against both [B, 2, n, n]."""
    red, green, blue = pictures.unbind(1)
    return torch.stack([red - green, blue - (red + green) / 2], dim=1)


def is_coloured(colours: Tensor) -> Tensor:
    """Whether pictures are more than grey, of opponent colours [B, 2, n, n] -> bool [B]."""
    return colours.abs().flatten(1).quantile(0.95, dim=1) > COLOURED


def match_windows(fixed: Tensor, moving: Tensor) -> WindowMatch:
    """Pictures float32 [B, 3, 64, 64] compared with others that are brought over them.

    The structure of a window is that of SSIM (Wang et al. 2004, IEEE TIP 13) on luminance. Colours
    are compared where both pictures have any: a copy may be grey.
    """
    found = align(fixed, moving)
    gain = found.gain[:, None, None, None]
    ours = blur(fixed)
    theirs = blur(found.warped) * gain
    light = luminance(ours)
    other = luminance(theirs) + found.bias[:, None, None, None]
    mean = window_means(light)
    other_mean = window_means(other)
    variance = (window_means(light * light) - mean**2).clamp_min(0)
    other_variance = (window_means(other * other) - other_mean**2).clamp_min(0)
    covariance = window_means(light * other) - mean * other_mean
    total = variance + other_variance
    likeness = (2 * covariance + NOISE**2) / (total + NOISE**2)
    colours = opponent_colours(ours)
    other_colours = opponent_colours(theirs)
    both = is_coloured(colours) & is_coloured(other_colours)
    difference = window_means(colours) - window_means(other_colours)
    off_colour = difference.norm(dim=1) * both[:, None, None]
    off_light = (mean - other_mean).abs()[:, 0]
    matched = (off_colour <= OTHER_COLOUR) & (off_light <= OTHER_COLOUR)
    shows = torch.maximum(variance, other_variance)[:, 0] > DETAIL**2
    overlaps = window_means(found.inside[:, None])[:, 0] > 0.99
    told = (shows | ~matched) & overlaps
    left_over = (total - 2 * covariance).clamp_min(0)[:, 0]
    return WindowMatch(
        told=told,
        same=told & matched & (likeness[:, 0] > LIKENESS),
        residual=(left_over + off_colour**2 / 4).sqrt(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Background:
    """What look-alikes of a picture have in common with it."""

    residual: Tensor  # [M, M], of the second best of them; infinite where there are none
    mismatch: float  # the share of windows that differ in the second best of them


def background_of(compared: WindowMatch, rows: Sequence[int]) -> Background:
    """The background that a picture shares with the look-alikes in `rows` of what it was compared
    with. The best of them may be another copy, so the second best is asked."""
    shares = compared.shares
    kept = [row for row in rows if shares[row] < WHOLE][:LOOK_ALIKES]
    if len(kept) < 2:
        nothing = torch.full_like(compared.residual[0], torch.inf)
        return Background(residual=nothing, mismatch=1.0)
    second = compared.residual[kept].sort(dim=0).values[1]
    mismatch = 1 - shares[kept].sort(descending=True).values[1]
    return Background(residual=second, mismatch=float(mismatch))


def is_copy(compared: WindowMatch, row: int, background: Background) -> bool:
    """Whether a picture and the one of `row` that it was compared with are one: most of what tells
    is the same, and that is more than what look-alikes share. Where these share nothing, half may
    be pasted over; before one background hardly anything may differ."""
    told = compared.told[row]
    same = compared.same[row]
    shown = int(told.sum())
    if shown < FEWEST:
        return False
    limit = OWN_RESIDUAL * (background.residual + NOISE / 2)
    own = int((same & (compared.residual[row] + NOISE / 2 < limit)).sum())
    other = int((told & ~same).sum())
    elsewhere = background.mismatch
    allowed = elsewhere * max(OWN_MISMATCH, SAME_SHARE * elsewhere**2)
    return own >= max(SAME_SHARE * (own + other), OWN_SHARE * shown) and other <= allowed * shown


class Thumbnails:
    """Small pictures of images, each made when first asked for (12 kB)."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._images = images
        self._made: dict[int, Tensor] = {}

    def get(self, index: int, mirrored: bool = False) -> Tensor:
        """uint8 [3, 64, 64] of an image, or of its mirror image."""
        if index not in self._made:
            self._made[index] = shrink(self._images[index])
        picture = self._made[index]
        return picture.flip(-1) if mirrored else picture


def compare_with(thumbnails: Thumbnails, index: int, others: Mapping[int, bool]) -> WindowMatch:
    """An image compared with others {index: whether its mirror image is nearer}."""
    fixed = stack_pictures([thumbnails.get(index)])
    moving = stack_pictures([thumbnails.get(other, flip) for other, flip in others.items()])
    parts = [match_windows(fixed.expand_as(some), some) for some in moving.split(BATCH)]
    return functools.reduce(WindowMatch.joined, parts)


def confirm_of_image(
    thumbnails: Thumbnails, index: int, candidates: Sequence[Copy], neighbours: Neighbours
) -> list[Copy]:
    """Which of the candidates, all of whose `first` is the image `index`, are copies of it."""
    flipped = {copy.second: copy.mirrored for copy in candidates}
    compared = compare_with(thumbnails, index, flipped)
    if compared.shares.max() < SAME_SHARE:
        return []
    nearest = neighbours.of(index)
    further = {other: flip for other, flip in nearest.items() if other not in flipped}
    if further:
        compared = compared.joined(compare_with(thumbnails, index, further))
    rows = {other: row for row, other in enumerate([*flipped, *further])}
    near = [rows[other] for other in nearest]
    confirmed = []
    for copy in candidates:
        row = rows[copy.second]
        background = background_of(compared, [one for one in near if one != row])
        if is_copy(compared, row, background):
            share = float(compared.shares[row])
            confirmed.append(replace(copy, share=share))
    return confirmed


def confirm_copies(
    images: Sequence[Tensor], candidates: Sequence[Copy], neighbours: Neighbours
) -> list[Copy]:
    """Those of the candidates that are copies by their pixels and colours, the surest first.

    Time grows with the candidates (at most 12 an image, some milliseconds each), memory with the
    images among them.
    """
    thumbnails = Thumbnails(images)
    of_image: dict[int, list[Copy]] = defaultdict(list)
    for copy in candidates:
        of_image[copy.first].append(copy)
    confirmed: list[Copy] = []
    for index, copies in of_image.items():
        confirmed += confirm_of_image(thumbnails, index, copies, neighbours)
    return sorted(confirmed, key=lambda copy: copy.order)
