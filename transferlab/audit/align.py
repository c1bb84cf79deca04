"""Brings one picture over another: a small affine motion, with brightness and contrast."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .copies import to_pillow

SIDE = 64  # pictures are compared at this size, whatever their shape
STEPS = {16: 6, 32: 4, SIDE: 2}  # side -> Gauss-Newton steps, from coarse to fine
FARTHEST = 0.25  # of each of the motion's numbers, in halves of the picture's side
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """B pictures brought over B others."""

    warped: Tensor  # float32 [B, 3, SIDE, SIDE], the moved picture, its light as it was
    inside: Tensor  # float32 [B, SIDE, SIDE], 1 where it has something to show, else 0
    gain: Tensor  # [B]: luminance of the other = gain * luminance of the moved + bias
    bias: Tensor  # [B]


def shrink(image: Tensor) -> Tensor:
    """A uint8 image [3, H, W] squeezed to uint8 [3, SIDE, SIDE]."""
    small = to_pillow(image).resize((SIDE, SIDE), Image.Resampling.HAMMING)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return pixels.view(SIDE, SIDE, 3).permute(2, 0, 1)


def luminance(pictures: Tensor) -> Tensor:
    """RGB [B, 3, H, W] -> [B, 1, H, W]."""
    weights = torch.tensor(LUMINANCE)[:, None, None]
    return (pictures * weights).sum(dim=1, keepdim=True)


def blur(pictures: Tensor) -> Tensor:
    """[B, C, H, W] smoothed by a binomial filter of 5 pixels, a standard deviation of 1."""
    for axis, padding in ((3, (2, 2, 0, 0)), (2, (0, 0, 2, 2))):
        side = pictures.shape[axis]
        padded = F.pad(pictures, padding, mode="replicate")
        shifted = [padded.narrow(axis, start, side) for start in range(5)]
        ends = shifted[0] + shifted[4]
        pictures = (ends + 4 * (shifted[1] + shifted[3]) + 6 * shifted[2]) / 16
    return pictures


def places(side: int) -> tuple[Tensor, Tensor]:
    """x and y [side, side] of every pixel's middle, from -1 to 1 across the picture."""
    middles = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return x, y


def move(pictures: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [B, C, n, n] moved by affine motions [B, 6] -> (moved, 1 where inside [B, n, n])."""
    x, y = places(pictures.shape[-1])
    a, b, c, d, e, f = motion[:, :, None, None].unbind(1)
    from_x = (1 + a) * x + b * y + c
    from_y = d * x + (1 + e) * y + f
    grid = torch.stack([from_x, from_y], dim=-1)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    inside = (from_x.abs() <= 1) & (from_y.abs() <= 1)
    return moved, inside.float()


def slopes(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of [B, n, n] along x and y, per unit of `places`."""
    side = pictures.shape[-1]
    along_x = torch.zeros_like(pictures)
    along_y = torch.zeros_like(pictures)
    along_x[:, :, 1:-1] = pictures[:, :, 2:] - pictures[:, :, :-2]
    along_y[:, 1:-1] = pictures[:, 2:] - pictures[:, :-2]
    return along_x * side / 4, along_y * side / 4


def first_light(fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and bias [B] to start from: none, or those that make mean and spread equal, whichever
    leaves the smaller median difference (a mask that is pasted on changes mean and spread)."""
    ours = fixed.flatten(1)
    theirs = moving.flatten(1)
    gain = (ours.std(dim=1) / theirs.std(dim=1).clamp_min(1)).clamp(0.5, 2)
    bias = ours.mean(dim=1) - gain * theirs.mean(dim=1)
    as_it_is = (ours - theirs).abs().median(dim=1).values
    fitted = (ours - gain[:, None] * theirs - bias[:, None]).abs().median(dim=1).values
    keep = as_it_is < fitted
    return torch.where(keep, 1.0, gain), torch.where(keep, 0.0, bias)


def align(fixed: Tensor, moving: Tensor) -> Alignment:
    """Brings pictures over others, both float32 RGB [B, 3, SIDE, SIDE].

    Lucas and Kanade's Gauss-Newton steps (Baker and Matthews 2004, IJCV 56) on luminance, from
    coarse to fine, over an affine motion, gain and bias, each pixel weighted down by its residual
    (Geman-McClure), so that what was pasted on does not pull.
    """
    fixed_light = luminance(fixed)
    moving_light = luminance(moving)
    motion = torch.zeros(len(fixed), 6)
    coarsest = min(STEPS)
    light = [F.adaptive_avg_pool2d(one, coarsest) for one in (fixed_light, moving_light)]
    gain, bias = first_light(*light)
    for side, steps in STEPS.items():
        ours = blur(F.adaptive_avg_pool2d(fixed_light, side))[:, 0]
        theirs = blur(F.adaptive_avg_pool2d(moving_light, side))
        for _ in range(steps):
            change = gauss_newton(ours, theirs, motion, gain, bias)
            motion = (motion + change[:, :6]).clamp(-FARTHEST, FARTHEST)
            gain = (gain + change[:, 6]).clamp(0.4, 2.5)
            bias = bias + change[:, 7]
    warped, inside = move(moving, motion)
    return Alignment(warped=warped, inside=inside, gain=gain, bias=bias)


def gauss_newton(
    ours: Tensor, theirs: Tensor, motion: Tensor, gain: Tensor, bias: Tensor
) -> Tensor:
    """One step for luminances [B, n, n] and [B, 1, n, n] -> what to add to motion, gain and bias
    [B, 8]."""
    moved, inside = move(theirs, motion)
    moved = moved[:, 0]
    x, y = places(moved.shape[-1])
    scale = gain[:, None, None]
    along_x, along_y = (scale * slope for slope in slopes(moved))
    by_motion = [along_x * x, along_x * y, along_x, along_y * x, along_y * y, along_y]
    jacobian = torch.stack([*by_motion, moved, torch.ones_like(moved)], dim=1).flatten(2)
    residual = (ours - scale * moved - bias[:, None, None]).flatten(1)
    spread = (1.48 * residual.abs().median(dim=1, keepdim=True).values).clamp_min(2)
    weight = inside.flatten(1) / (1 + (residual / (2 * spread)) ** 2) ** 2
    weighted = jacobian * weight[:, None]
    normal = weighted @ jacobian.transpose(1, 2)
    damping = torch.diag_embed(1e-3 * normal.diagonal(dim1=1, dim2=2) + 1e-3)
    right = (weighted @ residual[:, :, None])[:, :, 0]
    return torch.linalg.solve(normal + damping, right)


def stack_pictures(pictures: Sequence[Tensor]) -> Tensor:
    """Small uint8 pictures as float32 [B, 3, SIDE, SIDE]."""
    return torch.stack(list(pictures)).float()
