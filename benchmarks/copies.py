"""Does an audit tell copies of a picture from pictures that only look alike?

    python -m benchmarks.copies [--data DIR] [--pictures N] [--out DIR]

Of every set, `--pictures` pictures are altered in one way after another (re-encoded, resized,
mirrored, lit, cropped, turned, partly covered, grey), and the altered ones put beside the
originals: N pairs to find among 2 N pictures, by the audit's own steps. Found by the hash alone, as
it once did (60 of 256 bits, here among the 12 nearest), and with pixels and colours compared.

drawn      faces and insects as `transferlab` draws them, and what looks alike without being the
           same: fruit before white (of three colours; of one), hands that show a number before one
           textured background, and X-rays of one posture.
real       with --data: the manga faces, and the ants and bees.

recall is the share of the planted pairs that are found, precision the share of the found pairs that
were planted (no look-alike is a copy), serious the wrong pairs across classes. A mask is pasted
over 10 or 20 % of the picture.

Expected of 50 pictures a set, 550 pairs (pairs found; wrong pairs, of them serious):

    set                     hash alone             pixels compared
    manga faces             543;    0,    0        549;  0, 0
    ants and bees           531;    0,    0        545;  0, 0
    drawn faces             546;    0,    0        524;  0, 0
    drawn insects           503;   16,   13        502;  0, 0
    fruit, three colours    546; 2560, 1838        410; 97, 0
    fruit, one colour       542; 2967, 2119        369;  3, 3
    hands, one background   392; 8612, 6767        334;  1, 0
    X-rays                  437; 7001, 2512        436; 65, 1

Of the real pictures all kinds of copies are found to 98 % or more, but for a mask over 20 % of ants
and bees (92 %). Before a shared background masks are taken for another object (0 to 8 %), and
pictures that become white when lit for other pictures (fruit: 0 and 16 %).

Written: result/benchmarks/copies_{stamp}.csv, .json and img/copies_{stamp}.png. What an interrupted
run has measured is not measured again.
"""

import argparse
import functools
import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from benchmarks.common import (
    STUDIED,
    add_out,
    benchmark_store,
    code_digest,
    load_dataset,
    make_point,
    measured_values,
    point_key,
    run_command,
    write_results,
)
from transferlab.audit.confirm import confirm_copies
from transferlab.audit.copies import (
    Copy,
    Fingerprints,
    find_near_pairs,
    find_neighbours,
    perceptual_hash,
    to_pillow,
)
from transferlab.commands.options import positive
from transferlab.data import load_images
from transferlab.errors import UserError
from transferlab.machine import Machine, this_machine
from transferlab.plan import Plan, Point
from transferlab.plots import BLUE, GREY
from transferlab.records import BenchmarkRecord, DataInfo
from transferlab.synthetic import draw_faces, draw_insects

NAME = "copies"
BITS_ALONE = 60  # the hash's threshold, before pixels were compared
LONGEST_SIDE = 600  # of the pictures here: hashes and thumbnails are smaller by far


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    data: str
    pictures: int
    out: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """A picture and its class."""

    picture: Image.Image
    label: int


# ---- what looks alike ------------------------------------------------------------------------

FRUIT_COLOURS = ((190, 30, 40), (110, 170, 50), (235, 140, 30))
SKIN = (205, 155, 125)


def to_picture(pixels: np.ndarray) -> Image.Image:
    """Pixels [H, W, 3] of any range as a picture."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(picture: Image.Image, quality: int) -> Image.Image:
    """A picture as JPEG gives it back."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def draw_fruit(rng: np.random.Generator, colour: Sequence[int]) -> Image.Image:
    """A fruit of 100 px before white, with a light, spots and a stem."""
    y, x = np.mgrid[:100, :100].astype(float)
    middle_x, middle_y = 50 + rng.normal(0, 1.5, 2)
    half_width, half_height = 38 + rng.normal(0, 2, 2)
    angle = rng.uniform(0, np.pi)
    along = (x - middle_x) * np.cos(angle) + (y - middle_y) * np.sin(angle)
    across = (y - middle_y) * np.cos(angle) - (x - middle_x) * np.sin(angle)
    inside = (along / half_width) ** 2 + (across / half_height) ** 2 < 1
    shine = np.clip(1 - ((x - middle_x + 12) ** 2 + (y - middle_y + 14) ** 2) / 900, 0, 1)
    shade = 0.75 + 0.35 * shine
    for _ in range(25):
        spot_x, spot_y = rng.uniform(15, 85, 2)
        spot = (x - spot_x) ** 2 + (y - spot_y) ** 2 < rng.uniform(1, 4) ** 2
        shade += rng.uniform(-0.25, 0.15) * spot
    body = np.array(colour) * shade[:, :, None] * rng.uniform(0.85, 1.1)
    pixels = np.where(inside[:, :, None], body, 250) + rng.normal(0, 2, (100, 100, 3))
    stem = (abs(along) < 2) & (across < -0.7 * half_height) & (across > -1.1 * half_height)
    pixels[stem] = (90, 60, 30)
    return to_picture(pixels)


def draw_fruits(colours: Sequence[Sequence[int]], count: int) -> list[Labelled]:
    """Different fruits, a class a colour, or three classes of one colour."""
    drawn = []
    for number in range(count):
        rng = np.random.default_rng([number, len(colours)])
        picture = draw_fruit(rng, colours[number % len(colours)])
        drawn.append(Labelled(picture=encoded(picture, 92), label=number % 3))
    return drawn


def draw_backdrop(rng: np.random.Generator, side: int = 192) -> np.ndarray:
    """A textured wall with some things before it [side, side, 3]."""
    pixels = np.full((side, side, 3), rng.uniform(90, 190)) + rng.normal(0, 15, 3)
    for cells, strength in ((4, 40), (12, 25), (40, 12)):
        for channel in range(3):
            coarse = Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32))
            pixels[:, :, channel] += coarse.resize((side, side), Image.Resampling.BICUBIC)
    picture = to_picture(pixels)
    draw = ImageDraw.Draw(picture)
    for _ in range(5):
        left, top = rng.uniform(0, side, 2)
        width, height = rng.uniform(10, 70, 2)
        colour = tuple(rng.integers(30, 230, 3).tolist())
        draw.rectangle((left, top, left + width, top + height), fill=colour)
    blurred = picture.filter(ImageFilter.GaussianBlur(1))
    return np.asarray(blurred).astype(float)


def hand_outline(rng: np.random.Generator, fingers: int, side: int = 192) -> Image.Image:
    """A hand that shows a number, white on black."""
    outline = Image.new("L", (2 * side, 2 * side))
    draw = ImageDraw.Draw(outline)
    middle = 2 * np.array([side / 2 + rng.normal(0, 4), 0.62 * side + rng.normal(0, 4)])
    scale = 2 * (1 + rng.normal(0, 0.04))
    turn = rng.normal(0, 0.08)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def place(x: float, y: float) -> tuple[float, float]:
        turned = middle + scale * rotation @ (x, y)
        return float(turned[0]), float(turned[1])

    def disc(centre: tuple[float, float], radius: float) -> None:
        x, y = centre
        reach = scale * radius
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)

    disc(place(0, 0), 34)
    draw.line((place(0, 10), place(rng.normal(0, 4), 120)), fill=255, width=round(42 * scale))
    stretched = (1, 2, 3, 0, 4)[:fingers]
    for finger, angle in enumerate(np.linspace(-0.5, 0.5, 5) + rng.normal(0, 0.04, 5)):
        length = (78 if finger in stretched else 30) * (1 + rng.normal(0, 0.05))
        root = place(32 * np.sin(angle), -20 * np.cos(angle))
        tip = place(1.1 * length * np.sin(angle) + 8 * (finger - 2), -length * np.cos(angle))
        draw.line((root, tip), fill=255, width=round(14 * scale))
        disc(tip, 7)
    return outline.resize((side, side), Image.Resampling.LANCZOS)


def draw_hand(rng: np.random.Generator, fingers: int, backdrop: np.ndarray) -> Image.Image:
    """A hand before a backdrop, with its shadow, in another light, by a camera that shakes."""
    outline = hand_outline(rng, fingers)
    side = len(backdrop)
    y, x = np.mgrid[:side, :side]
    shade = 1 + 0.15 * np.sin(x / 25 + rng.normal(0, 0.3)) + 0.12 * np.cos(y / 18)
    covered = np.asarray(outline).astype(float)[:, :, None] / 255
    blurred = outline.filter(ImageFilter.GaussianBlur(8))
    shadow = np.asarray(blurred).astype(float)[:, :, None] / 255
    skin = np.array(SKIN) * shade[:, :, None]
    pixels = backdrop * (1 - 0.25 * shadow) * (1 - covered) + skin * covered
    lit = pixels * rng.uniform(0.92, 1.08) + rng.normal(0, 4)
    shaken = np.roll(lit, rng.integers(-2, 3, 2).tolist(), axis=(0, 1))
    return to_picture(shaken + rng.normal(0, 3, shaken.shape))


def draw_hands(count: int) -> list[Labelled]:
    """Hands before one background, a class a number of fingers."""
    backdrop = draw_backdrop(np.random.default_rng(0))
    drawn = []
    for number in range(count):
        fingers = number % 6
        picture = draw_hand(np.random.default_rng([number, 1]), fingers, backdrop)
        drawn.append(Labelled(picture=encoded(picture, 90), label=fingers))
    return drawn


def draw_xray(rng: np.random.Generator, spots: int) -> Image.Image:
    """A chest of 160 px: lungs, spine, ribs, a heart, and shadows where it is ill."""
    y, x = np.mgrid[:160, :160] / 160 - 0.5
    pixels = 60 + 90 * np.exp(-((x / 0.42) ** 4 + (y / 0.55) ** 4))
    width, height, apart = np.array([0.13, 0.28, 0.19]) + rng.normal(0, (0.012, 0.02, 0.012))
    for side in (-1, 1):
        lung = ((x - side * apart) / width) ** 4 + ((y + 0.02 + rng.normal(0, 0.012)) / height) ** 4
        pixels -= (70 + rng.normal(0, 6)) * np.exp(-lung)
    pixels += 50 * np.exp(-((x / 0.035) ** 2))
    for rib in range(9):
        bend = 0.25 + rng.normal(0, 0.04)
        slope = 0.06 + rng.normal(0, 0.01)
        off = y - (0.065 * rib - 0.3 + rng.normal(0, 0.006)) - bend * x**2 + slope * np.abs(x)
        pixels += (14 + rng.normal(0, 2)) * np.exp(-((off / 0.012) ** 2)) * (np.abs(x) < 0.38)
    heart = ((x - 0.06) / (0.1 + rng.normal(0, 0.008))) ** 2
    heart += ((y - 0.14) / (0.12 + rng.normal(0, 0.01))) ** 2
    pixels += 45 * np.exp(-(heart**2))
    for _ in range(spots):
        spot_x, spot_y = rng.uniform((-0.3, -0.2), (0.3, 0.2))
        reach = ((x - spot_x) / 0.05) ** 2 + ((y - spot_y) / 0.05) ** 2
        pixels += rng.uniform(15, 35) * np.exp(-reach)
    noisy = pixels * rng.uniform(0.9, 1.1) + rng.normal(0, 3, pixels.shape)
    return to_picture(np.repeat(noisy[:, :, None], 3, axis=2))


def draw_xrays(count: int) -> list[Labelled]:
    """X-rays of the well and the ill."""
    drawn = []
    for number in range(count):
        ill = number % 2
        picture = draw_xray(np.random.default_rng([number, 2]), spots=3 * ill)
        drawn.append(Labelled(picture=encoded(picture, 92), label=ill))
    return drawn


# ---- copies ----------------------------------------------------------------------------------


def cropped(picture: Image.Image, share: float) -> Image.Image:
    """A picture without `share` of its width and height, as much on either side."""
    across = round(picture.width * share / 2)
    down = round(picture.height * share / 2)
    return picture.crop((across, down, picture.width - across, picture.height - down))


def masked(picture: Image.Image, share: float) -> Image.Image:
    """A picture with a light blue mask pasted over `share` of it, in the lower half."""
    width, height = picture.size
    tall = np.sqrt(share) * height
    wide = share * width * height / tall / 0.9  # the corners are cut
    middle = width / 2
    top = 0.93 * height - tall
    corners = [
        (middle - wide / 2, top + 0.1 * tall),
        (middle, top),
        (middle + wide / 2, top + 0.1 * tall),
        (middle + 0.45 * wide, top + 0.8 * tall),
        (middle, top + tall),
        (middle - 0.45 * wide, top + 0.8 * tall),
    ]
    outline = Image.new("L", picture.size)
    ImageDraw.Draw(outline).polygon(corners, fill=255)
    pleats = 1 + 0.1 * np.sin(np.arange(height) / max(2, height / 40))
    cloth = np.array((170, 205, 225)) * pleats[:, None, None] * np.ones((1, width, 1))
    covered = picture.copy()
    covered.paste(to_picture(cloth), (0, 0), outline)
    return encoded(covered, 85)


def halved(picture: Image.Image) -> Image.Image:
    """A picture at half its size, JPEG quality 50."""
    smaller = picture.resize((max(8, picture.width // 2), max(8, picture.height // 2)))
    return encoded(smaller, 50)


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 30": functools.partial(encoded, quality=30),
    "half size, quality 50": halved,
    "mirrored": ImageOps.mirror,
    "20 % brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "30 % less contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(0.7),
    "2 % cropped away": functools.partial(cropped, share=0.02),
    "5 % cropped away": functools.partial(cropped, share=0.05),
    "3 degrees turned": lambda picture: picture.rotate(3, Image.Resampling.BICUBIC),
    "mask over 10 %": functools.partial(masked, share=0.1),
    "mask over 20 %": functools.partial(masked, share=0.2),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
}


# ---- what is found ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one rule does on one alteration of one set."""

    alteration: str
    rule: str  # "hash" or "pixels"
    planted: int  # pairs to find
    found: int  # of them
    wrong: int  # pairs found that are no copies
    serious: int  # of these, across classes

    @property
    def recall(self) -> float:
        """The share of the planted pairs that are found."""
        return self.found / self.planted


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """A picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def hash_pictures(pictures: Iterable[Image.Image]) -> np.ndarray:
    """Hashes of pictures and of their mirror images, bool [2, N, 256]."""
    both = [(perceptual_hash(one), perceptual_hash(ImageOps.mirror(one))) for one in pictures]
    return np.array(both).swapaxes(0, 1)


def score_rule(copies: Sequence[Copy], labels: Sequence[int], alteration: str, rule: str) -> Score:
    """Scores what was found among N pictures, of these `labels`, and N copies of them."""
    count = len(labels)
    right = [copy for copy in copies if copy.second == copy.first + count]
    wrong = [copy for copy in copies if copy.second % count != copy.first % count]
    serious = [one for one in wrong if labels[one.first % count] != labels[one.second % count]]
    return Score(
        alteration=alteration,
        rule=rule,
        planted=count,
        found=len(right),
        wrong=len(wrong),
        serious=len(serious),
    )


def score_set(pictures: Sequence[Labelled]) -> list[Score]:
    """Scores both rules on all alterations of some pictures."""
    originals = [one.picture for one in pictures]
    labels = [one.label for one in pictures]
    images = [to_tensor(picture) for picture in originals]
    hashes = hash_pictures(originals)
    scores = []
    for alteration, alter in ALTERATIONS.items():
        altered = [alter(picture) for picture in originals]
        both = np.concatenate([hashes, hash_pictures(altered)], axis=1)
        prints = Fingerprints(file_hash=(), pixel_hash=(), bits=both[0], mirrored=both[1], modes=())
        neighbours = find_neighbours(prints)
        candidates = find_near_pairs(neighbours)
        everything = images + [to_tensor(picture) for picture in altered]
        confirmed = confirm_copies(everything, candidates, neighbours)
        alone = [copy for copy in candidates if copy.distance <= BITS_ALONE]
        scores.append(score_rule(alone, labels, alteration, "hash"))
        scores.append(score_rule(confirmed, labels, alteration, "pixels"))
    return scores


# ---- sets ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """A set of pictures of which copies are made."""

    data: DataInfo
    make: Callable[[], list[Labelled]]


def smaller(picture: Image.Image) -> Image.Image:
    """A picture with sides of at most LONGEST_SIDE."""
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture


def spread(images: Sequence[torch.Tensor], labels: torch.Tensor, count: int) -> list[Labelled]:
    """`count` pictures, at even distances, of a folder's."""
    chosen = np.unique(np.linspace(0, len(images) - 1, count).round().astype(int)).tolist()
    return [
        Labelled(picture=smaller(to_pillow(images[index])), label=int(labels[index]))
        for index in chosen
    ]


def draw_folder(draw: Callable[[Path], Path], count: int) -> list[Labelled]:
    """`count` of the pictures that a function of `transferlab.synthetic` draws."""
    with tempfile.TemporaryDirectory() as place:
        image_set = load_images(draw(Path(place) / "drawn"))
        return spread(image_set.images, image_set.labels, count)


def drawn_sets(count: int) -> list[PictureSet]:
    """The sets that are drawn."""
    faces = functools.partial(draw_faces, per_class=-(-count // 7))
    insects = functools.partial(draw_insects, per_class=-(-count // 2))
    makers: dict[str, Callable[[], list[Labelled]]] = {
        "drawn faces": functools.partial(draw_folder, faces, count),
        "drawn insects": functools.partial(draw_folder, insects, count),
        "fruit, three colours": functools.partial(draw_fruits, FRUIT_COLOURS, count),
        "fruit, one colour": functools.partial(draw_fruits, FRUIT_COLOURS[:1], count),
        "hands, one background": functools.partial(draw_hands, count),
        "X-rays": functools.partial(draw_xrays, count),
    }
    return [
        PictureSet(data=DataInfo(name=name, digest="", n=count, synthetic=True), make=make)
        for name, make in makers.items()
    ]


def real_sets(data: str, count: int) -> list[PictureSet]:
    """The study's datasets; none where no folder is given.

    Raises:
        UserError: the folder lacks one.
    """
    sets = []
    for name, dataset in STUDIED.items() if data else ():
        image_set = load_dataset(data, dataset)
        info = DataInfo(name=name, digest=image_set.digest, n=count, synthetic=image_set.synthetic)
        make = functools.partial(spread, image_set.images, image_set.labels, count)
        sets.append(PictureSet(data=info, make=make))
    return sets


# ---- what is measured ------------------------------------------------------------------------


def make_plan(sets: Sequence[PictureSet], record: BenchmarkRecord, out: str) -> Plan:
    """A point a set."""
    store = benchmark_store(out, NAME)
    code = code_digest(__file__)

    def point(one: PictureSet) -> Point:
        key = point_key(NAME, one.data.name, used=one.data, machine=record.machine, code=code)
        return make_point(key, lambda: [asdict(score) for score in score_set(one.make())])

    return Plan(points=tuple(point(one) for one in sets), store=store)


def measure(plan: Plan, sets: Sequence[PictureSet]) -> list[dict[str, Any]]:
    """A row a set, alteration and rule; prints a line a set."""
    rows = []
    for one, (_, values) in zip(sets, measured_values(plan)):
        scores = [Score(**value) for value in values]
        for score in scores:
            precision = score.found / max(1, score.found + score.wrong)
            measured = {"recall": score.recall, "precision": precision}
            place = {"set": one.data.name, "synthetic": one.data.synthetic}
            rows.append(place | asdict(score) | measured)
        print(f"{one.data.name}: {describe_scores(scores)}", flush=True)
    return rows


def describe_scores(scores: Sequence[Score]) -> str:
    """How both rules do on a set, in words."""
    parts = []
    for rule in ("hash", "pixels"):
        of_rule = [score for score in scores if score.rule == rule]
        found = sum(score.found for score in of_rule)
        planted = sum(score.planted for score in of_rule)
        wrong = sum(score.wrong for score in of_rule)
        serious = sum(score.serious for score in of_rule)
        parts.append(f"{rule} {found} of {planted}, {wrong} wrong ({serious} across classes)")
    return "; ".join(parts)


def plot_recall(axis: Axes, part: pd.DataFrame) -> None:
    """Recall of both rules, a line an alteration, of one set."""
    for rule, colour in (("hash", GREY), ("pixels", BLUE)):
        of_rule = part[part.rule == rule]
        places = range(len(of_rule))
        axis.plot(100 * of_rule.recall, places, "o", color=colour, markersize=4)
        axis.set_yticks(places, of_rule.alteration, fontsize=7)
    wrong = part.groupby("rule").wrong.sum()
    title = f"{part.set.iloc[0]}\nwrong pairs: hash {wrong['hash']}, pixels {wrong['pixels']}"
    axis.set_title(title, fontsize=8)
    axis.set_xlim(-5, 105)
    axis.invert_yaxis()


def plot_copies(table: pd.DataFrame) -> Figure:
    """Recall of the hash alone and with pixels compared, a panel a set."""
    sets = list(table.groupby("set", sort=False))
    rows = -(-len(sets) // 4)
    figure, axes = plt.subplots(
        rows, 4, figsize=(12, 3 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(sets) :]:
        axis.set_axis_off()
    for axis, (_, part) in zip(axes.flat, sets):
        plot_recall(axis, part)
    figure.suptitle("Copies found: by the hash alone (grey), with pixels compared (blue)")
    figure.supxlabel("recall (%)", fontsize=9)
    return figure


def parse(arguments: Sequence[str] | None) -> Options:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--data", default="", help="a folder with both datasets (default: none)")
    parser.add_argument(
        "--pictures", type=positive, default=100, help="of each set (default: %(default)s)"
    )
    add_out(parser)
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None, *, machine: Machine | None = None) -> int:
    """Measures, prints, writes -> exit code."""
    options = parse(arguments)
    if options.pictures < 14:
        raise UserError(f"{options.pictures} pictures are too few to look alike: give 14 or more")
    sets = drawn_sets(options.pictures) + real_sets(options.data, options.pictures)
    record = BenchmarkRecord(
        kind=NAME,
        data=tuple(one.data for one in sets),
        weights=(),
        machine=machine or this_machine(),
        facts={"pictures": options.pictures, "bits_alone": BITS_ALONE},
    )
    plan = make_plan(sets, record, options.out)
    rows = measure(plan, sets)
    write_results(options.out, rows, record, plot_copies(pd.DataFrame(rows)), plan)
    return 0


if __name__ == "__main__":
    run_command(main)
