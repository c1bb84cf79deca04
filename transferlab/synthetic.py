"""Drawn stand-ins for the two datasets: faces with seven expressions, and ants and bees.

They let everything run where no dataset can be had. What is measured on them says that the code
works; it says nothing about manga or about photographs of insects.

A drawing is a list of vector shapes in units of its subject (x to the right, y down; a face is
about 2 wide, an insect about 2 long), painted in order. Everything that must not give the class
away (identity, hair, colours, background, pose, size) is a "look", chosen by functions that are
never told the class.
"""

import itertools
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from .errors import UserError

DRAWING_VERSION = 1  # part of the marker: a folder of older drawings is not taken for one of these
SUPERSAMPLING = 3  # painted at three times the size, then averaged down: smooth edges

Colour = tuple[int, ...]  # red, green, blue, and for a transparent fill its opacity: 0 to 255
INK = (45, 36, 44)
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

# ---- folders -----------------------------------------------------------------------------------

Look = TypeVar("Look")  # a FaceLook or an InsectLook


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to draw."""

    folder: str  # below the folder of all
    class_name: str
    number: int  # within its class


@dataclass(frozen=True, kw_only=True)
class Drawings(Generic[Look]):
    """A folder of pictures to draw."""

    note: str  # of the marker file SYNTHETIC
    seed: str
    pictures: Sequence[Picture]
    draw_look: Callable[[random.Random], Look]
    paint: Callable[[str, Look, random.Random], Image.Image]  # from class, look and randomness


def draw_faces(folder: str | Path, *, per_class: int = 20, seed: int = 0) -> Path:
    """Draws comic faces with seven expressions to `folder/CLASS/NNN.png`, RGB, about 256 px.

    Returns the folder's Path. A folder that an earlier call with the same parameters has drawn is
    returned as it is. Picture NNN of a class is the same whatever `per_class` is.

    Raises:
        UserError: `folder` is there and is not such a drawing, cannot be written, or `per_class`
            is below 1.
    """
    return fill_drawn_folder(folder, face_drawings(per_class, seed))


def face_drawings(per_class: int, seed: int) -> "Drawings[FaceLook]":
    """Says what `draw_faces` draws."""
    if per_class < 1:
        raise UserError(f"per_class is {per_class}: draw 1 or more faces a class")
    pictures = [
        Picture(folder=name, class_name=name, number=number)
        for number in range(per_class)
        for name in sorted(EXPRESSIONS)
    ]
    return Drawings(
        note=drawing_note("comic faces", per_class, seed),
        seed=f"faces {seed}",
        pictures=pictures,
        draw_look=draw_face_look,
        paint=paint_face,
    )


def draw_insects(folder: str | Path, *, per_class: int = 40, seed: int = 0) -> Path:
    """Draws ants and bees to `folder/{train,val}/{ants,bees}/NNN.png`, RGB, about 256 px.

    Returns the folder's Path. 62 % of a class go to train, as in the tutorial's 244/153. A folder
    that an earlier call with the same parameters has drawn is returned as it is. Picture NNN of a
    class is the same whatever `per_class` is; its split is not.

    Raises:
        UserError: `folder` is there and is not such a drawing, cannot be written, or `per_class`
            is below 2.
    """
    return fill_drawn_folder(folder, insect_drawings(per_class, seed))


def insect_drawings(per_class: int, seed: int) -> "Drawings[InsectLook]":
    """Says what `draw_insects` draws."""
    if per_class < 2:
        raise UserError(
            f"per_class is {per_class}: draw 2 or more insects a class, "
            "one to train on and one to validate"
        )
    n_train = min(per_class - 1, round(0.62 * per_class))
    pictures = []
    for number in range(per_class):
        split = "train" if number < n_train else "val"
        pictures += [
            Picture(folder=f"{split}/{name}", class_name=name, number=number)
            for name in ("ants", "bees")
        ]
    return Drawings(
        note=drawing_note("ants and bees", per_class, seed),
        seed=f"insects {seed}",
        pictures=pictures,
        draw_look=draw_insect_look,
        paint=paint_insect,
    )


def drawing_note(subject: str, per_class: int, seed: int) -> str:
    """The text of the marker file: equal where the drawings are equal."""
    parameters = f"version {DRAWING_VERSION}, per_class={per_class}, seed={seed}"
    return f"Drawn {subject}, no dataset: {parameters}\n"


def fill_drawn_folder(folder: str | Path, drawings: Drawings) -> Path:
    """Paints all pictures into a new folder, whole or not at all, and returns its Path.

    Raises:
        UserError: something else is there, or the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    if is_drawn_folder(folder, drawings.note):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Made beside its place and renamed into it: an interrupted drawing leaves nothing that
        # looks finished.
        prefix = f".{folder.name}-"
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as temporary:
            drawn = Path(temporary) / folder.name
            paint_pictures(drawn, drawings)
            drawn.rename(folder)
    except OSError as error:
        # Another process may have drawn the same in the meantime.
        if not is_drawn_folder(folder, drawings.note):
            raise UserError(f"drawings cannot be written to {folder}: {error}") from error
    return folder


def paint_pictures(folder: Path, drawings: Drawings) -> None:
    """Paints all pictures into `folder`, with the marker file last."""
    for place, picture in enumerate(drawings.pictures):
        # Look and class have generators of their own: of the class, a look knows nothing.
        look_rng = random.Random(f"{drawings.seed} look {place}")
        class_rng = random.Random(f"{drawings.seed} class {place}")
        look = drawings.draw_look(look_rng)
        image = drawings.paint(picture.class_name, look, class_rng)
        sub_folder = folder / picture.folder
        sub_folder.mkdir(parents=True, exist_ok=True)
        image.save(sub_folder / f"{picture.number:03d}.png")
    (folder / "SYNTHETIC").write_text(drawings.note, encoding="utf-8")


def is_drawn_folder(folder: Path, note: str) -> bool:
    """Says whether `folder` already holds these drawings.

    Raises:
        UserError: something else is there; it is never overwritten.
    """
    if not folder.exists() and not folder.is_symlink():
        return False
    marker = folder / "SYNTHETIC"
    found = "no file SYNTHETIC"
    if marker.is_file():
        found = marker.read_text(encoding="utf-8").strip()
    if found != note.strip():
        raise UserError(
            f"{folder} is there and is not the drawing asked for ({found}): "
            "delete it or give another folder"
        )
    return True


# ---- shapes ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """One area or line of a drawing, in units of its subject."""

    points: np.ndarray  # [K, 2]: x to the right, y down
    fill: Colour | None = None  # None: an open line
    line: Colour | None = None  # of the outline, or of the open line; None: no outline
    width: float = 0.0  # of the line


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """Where a subject lies in its image: takes its units to painted pixels."""

    matrix: np.ndarray  # [2, 2]
    centre: np.ndarray  # [2]

    @property
    def scale(self) -> float:
        """Pixels to a unit."""
        return math.sqrt(abs(np.linalg.det(self.matrix)))

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Points [K, 2] in pixels."""
        return points @ self.matrix.T + self.centre


def rotation_matrix(angle: float) -> np.ndarray:
    """The matrix [2, 2] that turns column vectors by `angle` in radians, from x towards y."""
    cosine = math.cos(angle)
    sine = math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def ellipse_points(
    centre: Sequence[float],
    radii: Sequence[float],
    *,
    start: float = 0,
    end: float = 360,
    count: int = 36,
) -> np.ndarray:
    """Points [count, 2] on an ellipse from angle `start` to `end` (degrees; 0 right, 90 down)."""
    x, y = centre
    radius_x, radius_y = radii
    angles = np.radians(np.linspace(start, end, count))
    across = x + radius_x * np.cos(angles)
    down = y + radius_y * np.sin(angles)
    return np.stack([across, down], axis=1)


def curve_points(anchors: ArrayLike, *, closed: bool = False, count: int = 8) -> np.ndarray:
    """A smooth curve through the anchors (Catmull-Rom), `count` points to a segment: [K, 2]."""
    anchors = np.asarray(anchors, dtype=float)
    last = anchors[-1:]
    if closed:
        padded = np.concatenate([last, anchors, anchors[:2]])
    else:
        padded = np.concatenate([anchors[:1], anchors, last])
    # Of each segment, the anchor before it, its two ends and the anchor after it.
    a = padded[:-3, None]
    b = padded[1:-2, None]
    c = padded[2:-1, None]
    d = padded[3:, None]
    t = np.linspace(0, 1, count, endpoint=False)[None, :, None]
    linear = (c - a) * t
    square = (2 * a - 5 * b + 4 * c - d) * t**2
    cube = (3 * b - a - 3 * c + d) * t**3
    segments = 0.5 * (2 * b + linear + square + cube)
    curve = segments.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, last])


def mirror_points(points: np.ndarray) -> np.ndarray:
    """The same points on the other side, in reverse: the way back of a symmetric outline."""
    return points[::-1] * (-1, 1)


def area(points: ArrayLike, fill: Colour, line: Colour | None = None, width: float = 0.0) -> Shape:
    """A filled shape, outlined where `line` is a colour."""
    return Shape(points=np.asarray(points, dtype=float), fill=fill, line=line, width=width)


def stroke(points: ArrayLike, colour: Colour, width: float) -> Shape:
    """An open line of constant width, with round ends."""
    return Shape(points=np.asarray(points, dtype=float), line=colour, width=width)


def brush_stroke(anchors: ArrayLike, colour: Colour, width: float) -> Shape:
    """A smooth line that swells to `width` in its middle, as a pen draws it."""
    points = curve_points(anchors)
    along = np.gradient(points, axis=0)
    length = np.linalg.norm(along, axis=1, keepdims=True)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / length
    arc = np.sin(np.linspace(0, np.pi, len(points)))
    swell = 0.5 * width * (0.25 + 0.75 * arc)
    offset = swell[:, None] * across
    way_back = (points - offset)[::-1]
    return area(np.concatenate([points + offset, way_back]), colour)


def mirror_shapes(shapes: Iterable[Shape], side: int = -1) -> list[Shape]:
    """The same shapes on the other side (x changes its sign); `side=1` leaves them as they are."""
    return [replace(shape, points=shape.points * (side, 1)) for shape in shapes]


def both_sides(shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes, and the same on the other side."""
    return [*shapes, *mirror_shapes(shapes)]


def shift_shapes(shapes: Iterable[Shape], x: float, y: float) -> list[Shape]:
    """The same shapes, shifted."""
    return [replace(shape, points=shape.points + (x, y)) for shape in shapes]


def enlarge_shapes(shapes: Iterable[Shape], factor: float) -> list[Shape]:
    """The same shapes, larger; their lines keep their width."""
    return [replace(shape, points=shape.points * factor) for shape in shapes]


def mix_colours(one: Colour, other: Colour, share: float) -> Colour:
    """The colour between two; `share` is the other's part."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other))


def circle_box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """The box around a circle: left, top, right, bottom."""
    return x - radius, y - radius, x + radius, y + radius


def painting_size(size: Sequence[int]) -> tuple[int, int]:
    """The width and height at which an image of `size` is painted."""
    width, height = size
    return width * SUPERSAMPLING, height * SUPERSAMPLING


def whole_image(image: Image.Image) -> Pose:
    """The pose of shapes given in the unit square: it fills the image."""
    sides = [float(image.width), float(image.height)]
    return Pose(matrix=np.diag(sides), centre=np.zeros(2))


def paint_shapes(image: Image.Image, shapes: Iterable[Shape], pose: Pose) -> None:
    """Paints shapes in order."""
    pen = ImageDraw.Draw(image, "RGBA")  # in this mode a fill with a fourth number is transparent
    scale = pose.scale
    for shape in shapes:
        pixels = pose.pixels(shape.points)
        if shape.fill:
            pen.polygon(pixels.ravel().tolist(), fill=shape.fill)
        if shape.line:
            width = max(1, round(shape.width * scale))
            closed = shape.fill is not None
            paint_line(pen, pixels, shape.line, width, closed=closed)


def paint_line(
    pen: ImageDraw.ImageDraw, pixels: np.ndarray, colour: Colour, width: int, *, closed: bool
) -> None:
    """Paints one line; dots round its ends and sharp corners, which Pillow leaves open."""
    if closed:
        pixels = np.concatenate([pixels, pixels[:1]])
    pen.line(pixels.ravel().tolist(), fill=colour, width=width)
    steps = np.diff(pixels, axis=0)
    directions = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
    turns = np.abs(np.diff(directions))
    sharp = 1 + np.flatnonzero(turns > 0.3)
    corners = [0, *sharp, len(pixels) - 1]
    for x, y in pixels[corners]:
        pen.ellipse(circle_box(x, y, width / 2), fill=colour)


def gradient_mask(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A mask that rises from one side of an image to the other."""
    gradient = Image.linear_gradient("L")
    turned = gradient.rotate(rng.choice((0, 90, 180, 270)))
    return turned.resize(size)


def draw_pose(
    rng: random.Random, *, size: tuple[int, int], turn: float, scale: tuple[float, float]
) -> Pose:
    """A random pose: a turn of at most `turn` degrees either way, shift, scale, shear, mirroring.

    `size` is the image's (width, height) in pixels before supersampling; `scale` the range of one
    unit as a share of the shorter side.
    """
    angle = math.radians(rng.uniform(-turn, turn))
    shear = rng.uniform(-0.12, 0.12)
    stretch = rng.uniform(0.94, 1.06)
    unit = rng.uniform(*scale) * min(size) * SUPERSAMPLING
    mirror = np.diag([rng.choice((-1, 1)), 1])
    deform = np.array([[stretch, shear], [0, 1 / stretch]])
    matrix = unit * rotation_matrix(angle) @ deform @ mirror
    shift = [rng.uniform(-0.07, 0.07), rng.uniform(-0.07, 0.07)]
    middle = np.array(size) * (0.5 + np.array(shift))
    return Pose(matrix=matrix, centre=middle * SUPERSAMPLING)


def draw_size(rng: random.Random) -> tuple[int, int]:
    """A random image size in pixels, (width, height): about 256, not always square."""
    sizes = (
        (256, 256),
        (256, 256),
        (240, 272),
        (272, 240),
        (224, 256),
        (256, 288),
        (300, 256),
    )
    return rng.choice(sizes)


# ---- faces: the look, which is chosen without knowing the class --------------------------------

SKINS = (
    (255, 228, 208),
    (250, 214, 188),
    (240, 196, 164),
    (214, 160, 124),
    (168, 114, 84),
    (255, 238, 226),
)
HAIRS = (
    (52, 44, 56),
    (92, 60, 44),
    (148, 98, 58),
    (226, 186, 104),
    (198, 84, 60),
    (92, 120, 182),
    (222, 138, 168),
    (122, 168, 132),
    (140, 108, 176),
    (206, 208, 218),
    (70, 82, 110),
    (240, 226, 180),
)
IRISES = (
    (70, 110, 180),
    (90, 140, 80),
    (140, 90, 50),
    (150, 70, 150),
    (190, 70, 70),
    (60, 150, 160),
    (200, 150, 50),
)
CLOTHES = (
    (70, 90, 140),
    (180, 80, 90),
    (90, 140, 120),
    (236, 232, 222),
    (90, 84, 100),
    (226, 176, 90),
    (160, 130, 190),
)
BACKDROPS = (
    (246, 240, 228),
    (214, 230, 242),
    (250, 218, 214),
    (222, 238, 214),
    (236, 222, 244),
    (250, 234, 190),
    (190, 206, 222),
    (250, 250, 250),
    (206, 200, 214),
    (168, 190, 186),
)
GLASSES = (90, 80, 90)
MOUTH = (150, 52, 58)
TONGUE = (236, 128, 124)
WATER = (176, 220, 246)
# Manga is printed in grey.
PRINTED_SKIN = (252, 252, 250)
PRINTED_HAIRS = ((38, 36, 40), (96, 94, 98), (160, 158, 162), (232, 232, 234))
PRINTED_IRIS = (90, 90, 90)


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """The background of a face."""

    kind: str
    colours: tuple[Colour, ...]  # two
    seed: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceLook:
    """Everything about a face but its expression; lengths in units of the face."""

    manga: bool  # grey, as printed
    size: tuple[int, int]  # of the image: width and height in pixels
    pose: Pose
    backdrop: Backdrop
    line: float  # width of the outlines
    skin: Colour
    hair: Colour
    iris: Colour
    cloth: Colour
    width: float  # half the head's
    jaw: float  # half its width at the jaw
    chin: float  # its lower end
    eye_size: float
    eye_gap: float  # from the middle of the face to an eye's
    eye_height: float
    brow: float  # width of its stroke
    nose: str
    back: str  # style of the hair behind the head
    fringe: str  # style of the hair over the forehead
    parting: float
    locks: int  # of the fringe
    side_locks: float  # where they end
    ribbon: bool
    glasses: bool


def draw_backdrop(rng: random.Random) -> Backdrop:
    """Chooses the background of a face."""
    kinds = ("flat", "gradient", "stripes", "dots", "rays", "bubbles", "halves")
    return Backdrop(
        kind=rng.choice(kinds), colours=tuple(rng.sample(BACKDROPS, 2)), seed=rng.random()
    )


def draw_face_look(rng: random.Random) -> FaceLook:
    """Chooses everything about a face but its expression."""
    # The order of the choices is part of the drawing: each takes its turn at the generator.
    manga = rng.random() < 0.35
    hair = rng.choice(PRINTED_HAIRS if manga else HAIRS)
    size = draw_size(rng)
    pose = draw_pose(rng, size=size, turn=12, scale=(0.31, 0.40))
    return FaceLook(
        manga=manga,
        size=size,
        pose=pose,
        backdrop=draw_backdrop(rng),
        line=rng.uniform(0.022, 0.042),
        skin=PRINTED_SKIN if manga else rng.choice(SKINS),
        hair=hair,
        iris=mix_colours(rng.choice(IRISES), PRINTED_IRIS, 1.0 if manga else 0.0),
        cloth=rng.choice(CLOTHES),
        width=rng.uniform(0.9, 1.02),
        jaw=rng.uniform(0.5, 0.68),
        chin=rng.uniform(1.04, 1.16),
        eye_size=rng.uniform(0.92, 1.1),
        eye_gap=rng.uniform(0.42, 0.48),
        eye_height=rng.uniform(0.10, 0.20),
        brow=rng.uniform(0.07, 0.12),
        nose=rng.choice(("dot", "hook", "none")),
        back=rng.choice(("none", "bob", "long", "tails", "buns", "spikes", "ponytail")),
        fringe=rng.choice(("locks", "parted", "blunt", "swept")),
        parting=rng.uniform(-0.5, 0.5),
        locks=rng.randint(4, 7),
        side_locks=rng.uniform(-0.1, 0.75),
        ribbon=rng.random() < 0.25,
        glasses=rng.random() < 0.15,
    )


def face_backdrop(look: FaceLook) -> Image.Image:
    """The background of a face, an image at painting size."""
    backdrop = look.backdrop
    rng = random.Random(backdrop.seed)
    first, second = backdrop.colours
    soft = mix_colours(first, second, 0.6)
    image = Image.new("RGB", painting_size(look.size), first)
    match backdrop.kind:
        case "gradient":
            mask = gradient_mask(image.size, rng)
            image.paste(Image.new("RGB", image.size, second), mask=mask)
        case "stripes":
            paint_stripes(image, soft, rng)
        case "dots":
            paint_dots(image, soft, rng)
        case "rays":
            paint_rays(image, soft, rng)
        case "bubbles":
            paint_bubbles(image, backdrop, rng)
        case "halves":
            paint_lower_half(image, second, rng)
    return image


def paint_stripes(image: Image.Image, colour: Colour, rng: random.Random) -> None:
    """Paints slanted stripes over an image."""
    pen = ImageDraw.Draw(image)
    bottom = image.height
    step = rng.randint(50, 110)
    lean = rng.randint(-200, 200)
    for left in range(-300, image.width + 300, step):
        right = left + step // 2
        corners = (left, 0, right, 0, right + lean, bottom, left + lean, bottom)
        pen.polygon(corners, fill=colour)


def paint_dots(image: Image.Image, colour: Colour, rng: random.Random) -> None:
    """Paints dots over an image, every other row shifted by half a step."""
    pen = ImageDraw.Draw(image)
    step = rng.randint(30, 60)
    radius = rng.uniform(0.16, 0.32) * step
    rows = range(0, image.height + step, step)
    for row, y in enumerate(rows):
        start = -(row % 2) * step // 2
        for x in range(start, image.width + step, step):
            pen.ellipse(circle_box(x, y, radius), fill=colour)


def paint_rays(image: Image.Image, colour: Colour, rng: random.Random) -> None:
    """Paints rays over an image from a point near its middle."""
    pen = ImageDraw.Draw(image)
    x = image.width * rng.uniform(0.3, 0.7)
    y = image.height * rng.uniform(0.3, 0.7)
    rays = rng.randint(9, 20)
    box = circle_box(x, y, 2 * image.width)
    for ray in range(rays):
        start = 360 * ray / rays
        end = 360 * (ray + 0.5) / rays
        pen.pieslice(box, start, end, fill=colour)


def paint_bubbles(image: Image.Image, backdrop: Backdrop, rng: random.Random) -> None:
    """Paints bubbles over an image, in colours between the backdrop's two."""
    pen = ImageDraw.Draw(image)
    first, second = backdrop.colours
    for _ in range(14):
        x = rng.uniform(0, image.width)
        y = rng.uniform(0, image.height)
        radius = rng.uniform(20, 110)
        colour = mix_colours(first, second, rng.random())
        pen.ellipse(circle_box(x, y, radius), fill=colour)


def paint_lower_half(image: Image.Image, colour: Colour, rng: random.Random) -> None:
    """Paints the lower part of an image, below a slanted edge."""
    pen = ImageDraw.Draw(image)
    width, height = image.size
    left = height * rng.uniform(0.4, 0.7)
    right = left + rng.uniform(-90, 90)
    pen.polygon((0, left, width, right, width, height, 0, height), fill=colour)


def body_shapes(look: FaceLook) -> list[Shape]:
    """Neck, shoulders and collar."""
    neck = [(-0.26, 0.7), (0.26, 0.7), (0.3, 1.5), (0.0, 1.9), (-0.3, 1.5)]
    left_shoulder = [(-1.5, 2.6), (-1.25, 1.72), (-0.35, 1.42)]
    right_shoulder = [(0.35, 1.42), (1.25, 1.72), (1.5, 2.6)]
    shoulders = curve_points([*left_shoulder, *right_shoulder])
    neckline = [(-0.28, 1.38), (0.28, 1.38), (0.0, 1.8)]
    collar = [(-0.36, 1.40), (0.0, 1.85), (0.36, 1.40), (0.5, 1.52), (0.0, 2.1), (-0.5, 1.52)]
    shade = mix_colours(look.skin, (150, 90, 90), 0.22)
    light_cloth = mix_colours(look.cloth, WHITE, 0.6)
    return [
        area(neck, shade, INK, look.line),
        area(shoulders, look.cloth, INK, look.line),
        area(neckline, shade),
        area(collar, light_cloth, INK, look.line),
    ]


def head_shapes(look: FaceLook) -> list[Shape]:
    """Ears, the bare face and the nose."""
    cheek = np.array([(0.75, -0.75), (1.0, -0.1), (0.92, 0.4)]) * (look.width, 1)
    right = np.array([*cheek, (look.jaw, 0.78), (0.14, look.chin)])
    outline = np.vstack([(0, -1.0), right, mirror_points(right)])
    ear = area(ellipse_points((look.width, 0.2), (0.14, 0.22)), look.skin, INK, look.line)
    face = area(curve_points(outline, closed=True), look.skin, INK, look.line)
    return [*both_sides([ear]), face, *nose_shapes(look)]


def nose_shapes(look: FaceLook) -> list[Shape]:
    """A nose as comics draw it, or none."""
    match look.nose:
        case "dot":
            dot = ellipse_points((0.02, 0.43), (0.025, 0.02), count=12)
            return [area(dot, INK)]
        case "hook":
            hook = [(0.03, 0.34), (0.07, 0.44), (-0.01, 0.47)]
            return [brush_stroke(hook, INK, 0.8 * look.line)]
        case _:
            return []


# The right outline of the hair behind the head, from the top down: x in half widths of the head.
BACK_HAIRS = {
    "bob": [(0.8, -1.05), (1.2, -0.3), (1.3, 0.5), (1.0, 1.05)],
    "long": [(0.8, -1.05), (1.2, -0.3), (1.25, 0.8), (1.45, 1.7), (1.1, 2.3)],
}
SHORT_BACK_HAIR = [(0.8, -1.05), (1.12, -0.3), (1.02, 0.4), (0.5, 0.8)]


def back_hair_shapes(look: FaceLook) -> list[Shape]:
    """The hair behind the head."""
    right = np.array(BACK_HAIRS.get(look.back, SHORT_BACK_HAIR)) * (look.width, 1)
    outline = np.vstack([(0, -1.25), right, mirror_points(right)])
    colour = back_hair_colour(look)
    cap = area(curve_points(outline, closed=True), colour, INK, look.line)
    return [*hair_style_shapes(look), cap]


def back_hair_colour(look: FaceLook) -> Colour:
    """The colour of the hair that lies in the shade of the head."""
    return mix_colours(look.hair, (20, 10, 30), 0.18)


def hair_style_shapes(look: FaceLook) -> list[Shape]:
    """What stands out from the hair behind the head: tails, buns or spikes."""
    match look.back:
        case "tails":
            return both_sides([hair_tail(look)])
        case "ponytail":
            return [hair_tail(look)]
        case "buns":
            points = ellipse_points((0.72, -1.12), (0.36, 0.34))
            bun = area(points, back_hair_colour(look), INK, look.line)
            return both_sides([bun])
        case "spikes":
            return [hair_spikes(look)]
        case _:
            return []


def hair_tail(look: FaceLook) -> Shape:
    """A tail of hair on the right."""
    tail = [(0.95, -0.75), (1.45, -0.8), (1.75, 0.1), (1.6, 1.2), (1.3, 0.5), (1.2, -0.2)]
    return area(curve_points(tail, closed=True), back_hair_colour(look), INK, look.line)


def hair_spikes(look: FaceLook) -> Shape:
    """Spikes of hair around the upper head."""
    angles = np.radians(np.linspace(165, 375, 15))
    is_tip = np.arange(15) % 2
    reach = np.where(is_tip, 1.6, 1.12)
    across = reach * look.width * np.cos(angles)
    down = -0.1 + reach * np.sin(angles)
    points = np.stack([across, down], axis=1)
    return area(points, back_hair_colour(look), INK, look.line)


def front_hair_shapes(look: FaceLook) -> list[Shape]:
    """The hair over the forehead, its shine, and a ribbon."""
    crown = np.array([(0.72, -1.08), (1.1, -0.5), (1.08, 0.0)]) * (look.width, 1)
    outer = curve_points(np.vstack([mirror_points(crown), (0, -1.27), crown]))
    end = look.side_locks
    right = np.array([(1.02, end), (0.9, 0.3 * end), (0.86, -0.35)]) * (look.width, 1)
    hairline = np.vstack([right, fringe_points(look), mirror_points(right)])
    hair = area(np.concatenate([outer, hairline]), look.hair, INK, look.line)
    gleam = np.array([(-0.62, -0.78), (-0.3, -0.92), (0.12, -0.95)]) * (look.width, 1)
    shine = brush_stroke(gleam, mix_colours(look.hair, WHITE, 0.45), 0.11)
    if look.ribbon:
        return [hair, shine, *ribbon_shapes(look)]
    return [hair, shine]


def fringe_points(look: FaceLook) -> np.ndarray:
    """The lower edge of the fringe from right to left, two points to a lock: [2 * locks, 2]."""
    reach = 0.86 * look.width
    ends = np.linspace(reach, -reach, look.locks + 1)
    notch = 0.05 if look.fringe == "blunt" else 0.3  # how far it rises between two locks
    points = []
    for start, end in itertools.pairwise(ends):
        x, y = lock_tip(look, (start + end) / 2)
        points.append((start, y - notch))
        points.append((x, y))
    return np.array(points)


def lock_tip(look: FaceLook, middle: float) -> tuple[float, float]:
    """Where the lock of the fringe that grows around x = `middle` ends."""
    match look.fringe:
        case "locks":
            wave = math.cos(9 * middle + look.parting)
            return middle, -0.28 + 0.08 * wave
        case "parted":
            away = middle - look.parting
            lean = 0.25 * np.sign(away)
            rise = 0.45 * min(1, abs(away))
            return middle + lean, -0.55 + rise
        case "swept":
            return middle + 0.28, -0.4 + 0.16 * middle / look.width
        case _:  # "blunt"
            return middle, -0.36


def ribbon_shapes(look: FaceLook) -> list[Shape]:
    """A bow in the hair."""
    loop = area([(0.62, -1.0), (0.98, -1.28), (1.06, -0.86)], look.cloth, INK, look.line)
    other_loop = mirror_shapes([loop])
    return [loop, *shift_shapes(other_loop, 1.24, 0.0)]


def glasses_shapes(look: FaceLook) -> list[Shape]:
    """Thin round glasses, or none."""
    if not look.glasses:
        return []
    width = 0.8 * look.line
    y = look.eye_height
    rim = ellipse_points((look.eye_gap, y + 0.02), (0.34, 0.33))
    rims = both_sides([stroke(rim, GLASSES, width)])
    bridge = stroke([(-0.1, y), (0.1, y)], GLASSES, width)
    return [*rims, bridge]


# ---- faces: the expression, which alone decides the class --------------------------------------


@dataclass(frozen=True, kw_only=True)
class Expression:
    """What makes a class of faces; of eyes and mouths one is drawn, of marks any number."""

    lift: float  # how far the brows are lifted
    pull: float  # how far their inner ends are pulled down
    eyes: tuple[str, ...]
    mouths: tuple[str, ...]
    marks: dict[str, float]  # how often each is drawn


EXPRESSIONS = {
    "angry": Expression(
        lift=-0.05,
        pull=0.24,
        eyes=("glare", "squint"),
        mouths=("grit", "shout", "frown"),
        marks={"vein": 0.6},
    ),
    "crying": Expression(
        lift=0.06,
        pull=-0.16,
        eyes=("wet", "squeezed"),
        mouths=("wail", "wobble"),
        marks={"streams": 1.0},
    ),
    "embarrassed": Expression(
        lift=0.02,
        pull=-0.1,
        eyes=("averted", "swirl"),
        mouths=("wobble", "tiny"),
        marks={"blush": 1.0, "sweat": 0.6},
    ),
    "happy": Expression(
        lift=0.09,
        pull=-0.02,
        eyes=("open", "arched"),
        mouths=("laugh", "grin"),
        marks={"blush": 0.2},
    ),
    "pleased": Expression(
        lift=0.04,
        pull=-0.03,
        eyes=("shut", "shut", "arched"),
        mouths=("smile", "cat"),
        marks={"blush": 0.3},
    ),
    "sad": Expression(
        lift=0.05,
        pull=-0.22,
        eyes=("lowered", "half"),
        mouths=("frown",),
        marks={"tear": 0.5},
    ),
    "shock": Expression(
        lift=0.17,
        pull=-0.04,
        eyes=("wide", "blank"),
        mouths=("gape", "gape", "wobble"),
        marks={"gloom": 0.6, "sweat": 0.3},
    ),
}


@dataclass(frozen=True, kw_only=True)
class OpenEye:
    """An open eye around (0, 0), its outer corner at the right."""

    openness: float
    slant: float = 0.0  # of the upper lid, its inner end down
    iris: float = 1.0  # its size; 0: none
    gaze_x: float = 0.0  # where it looks: to the side
    gaze_y: float = 0.0  # ... and down
    half_width: float = 0.30

    def upper_lid(self, x: np.ndarray) -> np.ndarray:
        """The upper lid's y at each x."""
        arc = np.sqrt(np.clip(1 - (x / self.half_width) ** 2, 0, 1))
        return -0.33 * self.openness * arc - self.slant * x

    def lower_lid(self, x: np.ndarray) -> np.ndarray:
        """The lower lid's y at each x."""
        arc = np.sqrt(np.clip(1 - (x / self.half_width) ** 4, 0, 1))
        return 0.24 * self.openness * arc - 0.3 * self.slant * x

    def between_lids(self, points: np.ndarray) -> np.ndarray:
        """The points [K, 2], those outside moved to the edge of the eye."""
        x = np.clip(points[:, 0], -self.half_width, self.half_width)
        top = self.upper_lid(x)
        bottom = np.maximum(top, self.lower_lid(x))
        y = np.clip(points[:, 1], top, bottom)
        return np.stack([x, y], axis=1)

    def disc(self, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
        """What the lids leave of an ellipse on the iris, given as if that looked straight ahead."""
        x, y = centre
        radius_x, radius_y = radii
        seen_centre = (self.gaze_x + x, self.gaze_y + y)
        seen_radii = (radius_x * self.iris, radius_y * self.iris)
        return self.between_lids(ellipse_points(seen_centre, seen_radii))


OPEN_EYES = {
    "open": OpenEye(openness=1.0),
    "glare": OpenEye(openness=0.72, slant=0.45, iris=0.75, gaze_y=0.02),
    "squint": OpenEye(openness=0.5, slant=0.35, iris=0.85),
    "wet": OpenEye(openness=0.92, slant=-0.2, iris=1.12, gaze_y=0.02),
    "averted": OpenEye(openness=0.8, slant=-0.05, iris=0.85, gaze_x=0.1, gaze_y=0.03),
    "lowered": OpenEye(openness=0.62, slant=-0.22, iris=0.95, gaze_x=0.02, gaze_y=0.1),
    "half": OpenEye(openness=0.5, slant=-0.08, gaze_y=0.02),
    "wide": OpenEye(openness=1.35, iris=0.4),
    "blank": OpenEye(openness=1.35, iris=0.0),
}


def draw_expression(name: str, look: FaceLook, rng: random.Random) -> list[Shape]:
    """Draws one variant of an expression, its strength varied: brows, eyes, mouth and marks."""
    expression = EXPRESSIONS[name]
    strength = rng.uniform(0.75, 1.15)
    marks = [mark for mark, chance in expression.marks.items() if rng.random() < chance]
    eyes = rng.choice(expression.eyes)
    mouth = rng.choice(expression.mouths)
    gaze_side = rng.choice((-1, 1))
    shapes = []
    for mark in marks:
        shapes += mark_shapes(mark, look, strength)
    shapes += eye_shapes(eyes, look, gaze_side)
    shapes += brow_shapes(look, strength * expression.lift, strength * expression.pull)
    mouth_around_origin = enlarge_shapes(mouth_shapes(mouth, look, strength), 1.25)
    shapes += shift_shapes(mouth_around_origin, 0.0, 0.73)
    return shapes


def brow_shapes(look: FaceLook, lift: float, pull: float) -> list[Shape]:
    """Both brows, in the colour of the hair."""
    x = look.eye_gap
    y = look.eye_height - 0.43 - lift
    inner_end = (x - 0.25, y + pull)
    middle = (x, y - 0.05 + 0.1 * pull)
    outer_end = (x + 0.25, y + 0.03 - 0.5 * pull)
    colour = mix_colours(look.hair, INK, 0.65)
    brow = brush_stroke([inner_end, middle, outer_end], colour, look.brow)
    return both_sides([brow])


def eye_shapes(kind: str, look: FaceLook, gaze_side: int) -> list[Shape]:
    """Both eyes; where they look aside, both look to `gaze_side`, -1 or 1."""
    shapes = []
    for side in (-1, 1):
        if kind in OPEN_EYES:
            eye = open_eye(kind, look, gaze_side * side)
        else:
            eye = closed_eye(kind, look)
        shapes += shift_shapes(mirror_shapes(eye, side), side * look.eye_gap, look.eye_height)
    return shapes


def open_eye(kind: str, look: FaceLook, gaze_side: int) -> list[Shape]:
    """One open eye around (0, 0), its outer corner at the right."""
    plain = OPEN_EYES[kind]
    half_width = plain.half_width * look.eye_size
    eye = replace(plain, gaze_x=plain.gaze_x * gaze_side, half_width=half_width)
    x = np.linspace(-half_width, half_width, 21)
    upper_lid = np.stack([x, eye.upper_lid(x)], axis=1)
    lower_lid = np.stack([x, eye.lower_lid(x)], axis=1)
    outline = np.concatenate([upper_lid, lower_lid[::-1]])
    edge = mix_colours(look.skin, INK, 0.5)
    eyeball = area(outline, WHITE, edge, 0.4 * look.line)
    outer_end = upper_lid[-1] + (0.04, 0.02)
    lashes = np.vstack([upper_lid[0], upper_lid[1:-1:2], outer_end])
    return [eyeball, *iris_shapes(eye, look.iris), brush_stroke(lashes, INK, 0.085)]


def iris_shapes(eye: OpenEye, colour: Colour) -> list[Shape]:
    """The iris with its rim, pupil and gleam, or nothing where the eye has none."""
    if not eye.iris:
        return []
    dark = mix_colours(colour, INK, 0.7)
    return [
        area(eye.disc((0, 0), (0.20, 0.28)), dark),
        area(eye.disc((0, 0.03), (0.17, 0.235)), colour),
        area(eye.disc((0, -0.01), (0.09, 0.14)), dark),
        area(eye.disc((-0.07, -0.1), (0.06, 0.075)), WHITE),
    ]


def closed_eye(kind: str, look: FaceLook) -> list[Shape]:
    """One closed eye around (0, 0), its outer corner at the right."""
    half = 0.30 * look.eye_size
    width = 0.075
    match kind:
        case "arched":
            arch = [(-1, 0.08), (-0.5, -0.07), (0, -0.12), (0.5, -0.07), (1, 0.08)]
            return [brush_stroke(np.array(arch) * (half, 1), INK, width)]
        case "shut":
            arch = [(-1, 0.0), (-0.5, 0.09), (0, 0.12), (0.5, 0.09), (1, 0.0)]
            lid = brush_stroke(np.array(arch) * (half, 1), INK, width)
            lash_width = 0.6 * look.line
            return [lid, eyelash(0.6 * half, 0.09, lash_width), eyelash(half, 0.0, lash_width)]
        case "squeezed":
            end = 0.9 * half
            upper = brush_stroke([(-end, 0.0), (end, -0.14)], INK, width)
            lower = brush_stroke([(-end, 0.0), (end, 0.14)], INK, width)
            return [upper, lower]
        case _:  # "swirl"
            turns = np.linspace(0, 5 * np.pi, 60)[:, None]
            circles = np.concatenate([np.cos(turns), np.sin(turns)], axis=1)
            return [stroke(0.014 * turns * circles, INK, 0.9 * look.line)]


def eyelash(x: float, y: float, width: float) -> Shape:
    """One lash of a shut eye, outward and down from (x, y)."""
    return stroke([(x, y), (1.25 * x, y + 0.07)], INK, width)


def mouth_shapes(kind: str, look: FaceLook, strength: float) -> list[Shape]:
    """The mouth around (0, 0)."""
    line = 1.1 * look.line
    match kind:
        case "smile":
            return [bent_mouth(0.09 * strength)]
        case "frown":
            return [bent_mouth(-0.10 * strength)]
        case "cat":
            return [cat_mouth(strength)]
        case "tiny":
            return [brush_stroke([(-0.09, 0.02), (0, -0.015), (0.09, 0.02)], INK, 0.055)]
        case "wobble":
            return [wobbling_mouth(strength, line)]
        case "laugh":
            return laughing_mouth(strength, line)
        case "grin":
            return [grinning_mouth(strength, line)]
        case "grit":
            return gritted_mouth(strength, line)
        case "shout":
            return shouting_mouth(strength, line)
        case "wail":
            return [wailing_mouth(strength, line)]
        case _:  # "gape"
            return [area(ellipse_points((0, 0.02), (0.15, 0.2 * strength)), MOUTH, INK, line)]


def bent_mouth(bend: float) -> Shape:
    """A smile, or where `bend` is negative a frown."""
    across = np.array([-0.24, -0.12, 0, 0.12, 0.24])
    down = bend / np.array([-2, 3, 2, 3, -2])
    return brush_stroke(np.stack([across, down], axis=1), INK, 0.06)


def cat_mouth(strength: float) -> Shape:
    """The mouth of a contented cat."""
    low = 0.05 * strength
    anchors = [(-0.22, -0.03), (-0.12, low), (0, -0.03), (0.12, low), (0.22, -0.03)]
    return brush_stroke(anchors, INK, 0.055)


def wobbling_mouth(strength: float, line: float) -> Shape:
    """A wavy line."""
    steps = np.arange(-4, 5)
    sign = np.where(steps % 2, -1, 1)
    across = 0.07 * steps
    down = 0.035 * strength * sign
    return stroke(curve_points(np.stack([across, down], axis=1)), INK, line)


def laughing_mouth(strength: float, line: float) -> list[Shape]:
    """A wide open mouth with tongue and upper teeth."""
    arc = ellipse_points((0, -0.1), (0.3, 0.30 * strength), start=0, end=180, count=20)
    mouth = np.vstack([(-0.3, -0.1), arc[::-1]])
    tongue = ellipse_points((0, 0.22 * strength - 0.1), (0.16, 0.08 * strength))
    teeth = [(-0.27, -0.1), (0.27, -0.1), (0.23, -0.03), (-0.23, -0.03)]
    outline = np.vstack([mouth, mouth[0]])
    return [
        area(mouth, MOUTH),
        area(tongue, TONGUE),
        area(teeth, WHITE),
        stroke(outline, INK, line),
    ]


def grinning_mouth(strength: float, line: float) -> Shape:
    """A grin that shows the teeth."""
    low = 0.09 * strength
    lowest = 0.13 * strength
    lower_lip = [(0.3, -0.08), (0.17, low), (0, lowest), (-0.17, low), (-0.3, -0.08)]
    top = curve_points([(-0.3, -0.08), (0, -0.03), (0.3, -0.08)])
    bottom = curve_points(lower_lip)
    return area(np.concatenate([top, bottom]), WHITE, INK, line)


def gritted_mouth(strength: float, line: float) -> list[Shape]:
    """Clenched teeth."""
    high = -0.06 * strength
    upper_lip = [(-0.26, 0.09), (-0.22, high), (0, -0.08 * strength), (0.22, high), (0.26, 0.09)]
    mouth = curve_points([*upper_lip, (0, 0.07)], closed=True)
    gaps = []
    for x in (-0.13, 0, 0.13):
        gap = [(x, -0.05 * strength), (x, 0.06)]
        gaps.append(stroke(gap, INK, 0.5 * line))
    bite = stroke([(-0.22, 0.01), (0.22, 0.01)], INK, 0.5 * line)
    return [area(mouth, WHITE, INK, line), *gaps, bite]


def shouting_mouth(strength: float, line: float) -> list[Shape]:
    """An open mouth with upper teeth."""
    mouth = np.array([(-0.17, -0.12), (0.17, -0.12), (0.25, 0.16), (-0.25, 0.16)])
    teeth = np.array([(-0.17, -0.11), (0.17, -0.11), (0.19, -0.05), (-0.19, -0.05)])
    opened = area(mouth * (1, strength), MOUTH, INK, line)
    return [opened, area(teeth * (1, strength), WHITE)]


def wailing_mouth(strength: float, line: float) -> Shape:
    """An open mouth, its corners down."""
    corner = 0.15 * strength
    low = 0.1 * strength
    top = [(-0.26, corner), (-0.2, -0.08), (0, -0.14 * strength), (0.2, -0.08), (0.26, corner)]
    bottom = [(0.1, low), (-0.1, low)]
    return area(curve_points([*top, *bottom], closed=True), MOUTH, INK, line)


def drop_points(x: float, y: float, size: float) -> np.ndarray:
    """The outline [K, 2] of a falling drop, its tip at the top."""
    drop = np.array([(0, -1.3), (0.5, 0), (0, 0.6), (-0.5, 0)])
    return curve_points(drop * size + (x, y), closed=True)


def mark_shapes(kind: str, look: FaceLook, strength: float) -> list[Shape]:
    """Signs that comics add to a face: blush, tears, sweat, a swollen vein, lines of gloom."""
    match kind:
        case "blush":
            return blush_shapes(look, strength)
        case "gloom":
            return gloom_shapes(look)
        case "streams":
            return stream_shapes(look, strength)
        case "tear":
            tear = drop_points(look.eye_gap + 0.08, look.eye_height + 0.42, 0.14)
            return [area(tear, WATER, water_edge(look), 0.6 * look.line)]
        case "sweat":
            bead = drop_points(0.74, -0.38, 0.2)
            return [area(bead, WATER, water_edge(look), 0.8 * look.line)]
        case _:  # "vein"
            return vein_shapes()


def blush_shapes(look: FaceLook, strength: float) -> list[Shape]:
    """Red cheeks, hatched."""
    x = look.eye_gap
    y = look.eye_height
    colour = (240, 96, 110, round(140 * strength))
    shapes = [area(ellipse_points((x + 0.06, y + 0.40), (0.27, 0.13)), colour)]
    hatch = np.array([(-0.03, 0.46), (0.04, 0.34)])
    for number in range(-1, 3):
        start = x + 0.1 * number
        shapes.append(stroke(hatch + (start, y), (206, 60, 80), 0.8 * look.line))
    return both_sides(shapes)


def gloom_shapes(look: FaceLook) -> list[Shape]:
    """Lines down the forehead, every other one longer."""
    lines = []
    for number in range(-4, 5):
        x = 0.15 * number
        end = -0.12 - 0.1 * (number % 2)
        lines.append(stroke([(x, -0.45), (x, end)], (110, 120, 160), 0.8 * look.line))
    return lines


def water_edge(look: FaceLook) -> Colour:
    """The colour of the outline of tears and sweat."""
    return INK if look.manga else mix_colours(WATER, (50, 90, 140), 0.6)


def stream_shapes(look: FaceLook, strength: float) -> list[Shape]:
    """Tears that stream down both cheeks."""
    eye = (look.eye_gap, look.eye_height)
    left = [(-0.1, 0.02), (-0.13, 0.4), (-0.12, 0.72 * strength), (-0.02, 0.84 * strength)]
    right = [(0.1, 0.74 * strength), (0.17, 0.4), (0.16, 0.02)]
    outline = np.array([*left, *right]) + eye
    edge = water_edge(look)
    stream = area(curve_points(outline, closed=True), WATER, edge, 0.7 * look.line)
    gleam = np.array([(-0.04, 0.3), (-0.05, 0.5), (-0.03, 0.7 * strength)]) + eye
    return both_sides([stream, brush_stroke(gleam, WHITE, 0.06)])


def vein_shapes() -> list[Shape]:
    """A swollen vein on the forehead: four bent lines."""
    corner = np.array([(0.06, 0.2), (0.07, 0.07), (0.2, 0.06)])
    vein = []
    for signs in itertools.product((-1, 1), (-1, 1)):
        bent = curve_points(corner * signs)
        vein.append(stroke(bent, (206, 40, 40), 0.05))
    return shift_shapes(vein, 0.58, -0.62)


def paint_face(name: str, look: FaceLook, rng: random.Random) -> Image.Image:
    """Paints one face with the expression `name`: an RGB image of the look's size."""
    image = face_backdrop(look)
    shapes = [
        *back_hair_shapes(look),
        *body_shapes(look),
        *head_shapes(look),
        *front_hair_shapes(look),
        *draw_expression(name, look, rng),
        *glasses_shapes(look),
    ]
    paint_shapes(image, shapes, look.pose)
    image = image.reduce(SUPERSAMPLING)
    return image.convert("L").convert("RGB") if look.manga else image


# ---- insects: the look, which is chosen without knowing the class ------------------------------

GROUNDS = (
    (132, 168, 92),
    (96, 138, 84),
    (176, 150, 112),
    (206, 190, 156),
    (150, 152, 150),
    (186, 206, 222),
    (232, 226, 214),
    (120, 98, 78),
)
PETALS = (
    (244, 196, 72),
    (236, 150, 178),
    (246, 244, 240),
    (176, 142, 210),
    (228, 110, 86),
    (120, 164, 84),
    (164, 128, 90),
    (190, 190, 186),
)
ANT_HUES = ((34, 28, 28), (86, 50, 32), (142, 62, 36), (190, 130, 58), (60, 44, 40))
ANT_SHADE = (20, 16, 16)
BEE_HUES = (
    (234, 180, 50),
    (222, 150, 44),
    (240, 206, 110),
    (200, 130, 60),
    (110, 84, 60),  # a dark bee
)
BEE_BLACK = (44, 34, 30)


@dataclass(frozen=True, kw_only=True, eq=False)
class InsectLook:
    """Everything about an insect's picture that ants and bees share; lengths in its units."""

    size: tuple[int, int]  # of the image: width and height in pixels
    pose: Pose
    bend: float  # of the body
    ground: Colour
    plants: str
    plant_colours: tuple[Colour, ...]  # two
    plant_seed: float
    blur: float  # of the ground, in pixels of the picture
    focus: float  # blur of all, in the same pixels
    grass: int  # blades in front of the insect
    light: float
    line: float  # width of the outlines
    girth: float
    dark: float  # how dark the body is, within what its kind allows
    stance: float  # how far the legs lean


def draw_insect_look(rng: random.Random) -> InsectLook:
    """Chooses everything about an insect's picture that ants and bees share."""
    # The order of the choices is part of the drawing: each takes its turn at the generator.
    size = draw_size(rng)
    return InsectLook(
        size=size,
        pose=draw_pose(rng, size=size, turn=180, scale=(0.12, 0.30)),
        bend=rng.uniform(-0.16, 0.16),
        ground=rng.choice(GROUNDS),
        plants=rng.choice(("leaves", "flower", "pebbles", "grass", "none")),
        plant_colours=tuple(rng.sample(PETALS, 2)),
        plant_seed=rng.random(),
        blur=rng.uniform(1, 4),
        focus=rng.uniform(0.0, 1.6),
        grass=rng.choice((0, 0, 1, 3, 5)),
        light=rng.uniform(0.85, 1.1),
        line=rng.uniform(0.018, 0.034),
        girth=rng.uniform(0.88, 1.14),
        dark=rng.random(),
        stance=rng.uniform(-0.12, 0.12),
    )


def insect_backdrop(look: InsectLook) -> Image.Image:
    """Ground and plants out of focus, an image at painting size."""
    rng = random.Random(look.plant_seed)
    image = Image.new("RGB", painting_size(look.size), look.ground)
    mask = gradient_mask(image.size, rng).point(lambda value: 0.33 * value)
    shade = mix_colours(look.ground, rng.choice((INK, WHITE)), 0.5)
    image.paste(Image.new("RGB", image.size, shade), mask=mask)
    paint_shapes(image, plant_shapes(rng, look), whole_image(image))
    blur = ImageFilter.GaussianBlur(look.blur)
    blurred = image.reduce(SUPERSAMPLING).filter(blur)
    return blurred.resize(image.size, Image.Resampling.BILINEAR)


def plant_shapes(rng: random.Random, look: InsectLook) -> list[Shape]:
    """What lies or grows on the ground, in the unit square."""
    match look.plants:
        case "leaves":
            return [plant_blade(rng, look, rng.uniform(0.2, 0.4), 0.5) for _ in range(7)]
        case "grass":
            return [plant_blade(rng, look, rng.uniform(0.4, 0.9), 0.06) for _ in range(22)]
        case "pebbles":
            return [pebble_shape(rng, look) for _ in range(24)]
        case "flower":
            return flower_shapes(rng, look)
        case _:
            return []


def pebble_shape(rng: random.Random, look: InsectLook) -> Shape:
    """One pebble somewhere in the unit square."""
    tint = rng.choice(look.plant_colours)
    colour = mix_colours(look.ground, tint, rng.uniform(0.2, 0.7))
    centre = (rng.random(), rng.random())
    radii = (rng.uniform(0.03, 0.12), rng.uniform(0.03, 0.1))
    return area(ellipse_points(centre, radii), colour)


def plant_blade(rng: random.Random, look: InsectLook, length: float, plumpness: float) -> Shape:
    """One leaf or blade of grass somewhere in the unit square."""
    centre = np.array([rng.random(), rng.random()])
    angle = rng.uniform(0, 2 * math.pi)
    cosine = math.cos(angle)
    sine = math.sin(angle)
    half = length / 2 * np.array([cosine, sine])
    wide = plumpness * length / 2 * np.array([-sine, cosine])
    outline = curve_points([-half, wide, half, -wide], closed=True)
    first, _ = look.plant_colours
    colour = mix_colours(first, look.ground, rng.uniform(0.1, 0.7))
    return area(centre + outline, colour)


def paint_grass(image: Image.Image, look: InsectLook) -> None:
    """Paints a few blades of grass in front of the insect."""
    rng = random.Random(look.plant_seed + 1)
    blades = []
    for _ in range(look.grass):
        length = rng.uniform(0.6, 1.4)
        blades.append(plant_blade(rng, look, length, 0.04))
    paint_shapes(image, blades, whole_image(image))


def flower_shapes(rng: random.Random, look: InsectLook) -> list[Shape]:
    """One large flower in the unit square."""
    centre = (rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8))
    reach = rng.uniform(0.28, 0.45)
    petals = rng.randint(5, 9)
    start = rng.random()
    petal_colour, heart_colour = look.plant_colours
    petal = ellipse_points((reach * 0.6, 0), (reach * 0.45, reach * 0.24))
    shapes = []
    for turn in np.linspace(0, 2 * math.pi, petals, endpoint=False):
        turned = petal @ rotation_matrix(-(turn + start))
        colour = mix_colours(petal_colour, WHITE, rng.uniform(0, 0.25))
        shapes.append(area(turned + centre, colour))
    radius = reach * 0.25
    heart = area(ellipse_points(centre, (radius, radius)), heart_colour)
    return [*shapes, heart]


# ---- insects: the body plan, which alone decides the class -------------------------------------


def leg_shapes(
    hips: Sequence[float], look: InsectLook, colour: Colour, reach: float, width: float
) -> list[Shape]:
    """Six jointed legs; `hips` are the y of the three on a side."""
    directions = (-0.55, 0.1, 0.75)  # forward to backward
    shapes = []
    for side in (-1, 1):
        for hip, direction in zip(hips, directions):
            lean = direction + side * look.stance
            knee = (0.52 * reach, hip + 0.35 * lean - 0.05)
            foot_x = 0.85 * reach
            foot_y = hip + 0.95 * lean
            foot = (foot_x, foot_y)
            toe = (foot_x + 0.08, foot_y + 0.12 * lean)
            thigh = stroke([(0.08, hip), knee], colour, width)
            shin = stroke([knee, foot], colour, 0.65 * width)
            claw = stroke([foot, toe], colour, 0.5 * width)
            shapes += mirror_shapes([thigh, shin, claw], side)
    return shapes


def body_segment(
    centre: Sequence[float], radii: Sequence[float], colour: Colour, line: float
) -> list[Shape]:
    """One glossy segment."""
    x, y = centre
    radius_x, radius_y = radii
    edge = mix_colours(colour, BLACK, 0.55)
    segment = area(ellipse_points(centre, radii), colour, edge, line)
    gleam_centre = (x - 0.35 * radius_x, y - 0.3 * radius_y)
    gleam_radii = (0.3 * radius_x, 0.4 * radius_y)
    gleam = area(ellipse_points(gleam_centre, gleam_radii), (255, 255, 255, 55))
    return [segment, gleam]


def fur_shapes(
    centre: Sequence[float],
    radii: Sequence[float],
    colour: Colour,
    rng: random.Random,
    count: int = 60,
) -> list[Shape]:
    """Short hairs around a segment."""
    radius_x, radius_y = radii
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    shapes = []
    for angle in angles:
        out = np.array([radius_x * math.cos(angle), radius_y * math.sin(angle)])
        tint = rng.choice((WHITE, INK))
        shade = mix_colours(colour, tint, rng.uniform(0, 0.35))
        root = centre + 0.8 * out
        tip = centre + rng.uniform(1.06, 1.22) * out
        shapes.append(stroke([root, tip], shade, 0.03))
    return shapes


def draw_ant(look: InsectLook, rng: random.Random) -> list[Shape]:
    """An ant from above: three segments, a narrow waist, elbowed antennae, no wings."""
    line = look.line
    girth = look.girth
    colour = mix_colours(rng.choice(ANT_HUES), (24, 20, 20), 0.5 * look.dark)
    rear = mix_colours(colour, ANT_SHADE, rng.choice((0, 0, 0.5)))
    limb = mix_colours(colour, ANT_SHADE, 0.25)
    head = rng.uniform(0.2, 0.27) * girth
    tail = rng.uniform(0.24, 0.34) * girth
    elbow = rng.uniform(0.3, 0.42)
    reach = rng.uniform(0.85, 1.1)
    jaw = area([(0.03, -0.8), (0.12, -0.8), (0.09, -0.93), (0.01, -0.9)], limb)
    return [
        *leg_shapes((-0.3, -0.16, -0.02), look, limb, reach, 2.2 * line),
        *both_sides(ant_antenna(elbow, limb, line)),
        *both_sides([jaw]),
        *body_segment((0, 0.62), (tail, 0.38), rear, line),
        *abdomen_creases(tail, rear, line),
        *body_segment((0, 0.17), (0.06, 0.08), colour, line),
        *body_segment((0, -0.18), (0.14 * girth, 0.29), colour, line),
        *body_segment((0, -0.62), (head, 0.22), colour, line),
    ]


def ant_antenna(elbow: float, colour: Colour, line: float) -> list[Shape]:
    """The right antenna of an ant, bent at x = `elbow`."""
    bend = (elbow, -0.98)
    shaft = stroke([(0.08, -0.78), bend], colour, 1.6 * line)
    lash = curve_points([bend, (elbow - 0.02, -1.2), (elbow - 0.14, -1.4)])
    return [shaft, stroke(lash, colour, 1.4 * line)]


def abdomen_creases(radius: float, colour: Colour, line: float) -> list[Shape]:
    """Two lines across the hind segment of an ant."""
    crease = mix_colours(colour, BLACK, 0.4)
    shapes = []
    for y in (0.52, 0.68):
        arc = ellipse_points((0, y), (0.93 * radius, 0.1), start=20, end=160, count=12)
        shapes.append(stroke(arc, crease, 0.7 * line))
    return shapes


def draw_bee(look: InsectLook, rng: random.Random) -> list[Shape]:
    """A bee from above: a furry striped body, large eyes, two pairs of wings."""
    line = look.line
    girth = look.girth
    yellow = mix_colours(rng.choice(BEE_HUES), (60, 44, 34), 0.45 * look.dark)
    dusky = mix_colours(yellow, BEE_BLACK, 0.15)
    spread = rng.uniform(0, 50)
    length = rng.uniform(0.8, 1.02)
    half_width = 0.33 * girth
    hind_wing = wing_shapes(0.72 * length, 0.16, spread + 30, -0.16, line)
    fore_wing = wing_shapes(length, 0.2, spread, -0.3, line)
    stripes = abdomen_stripes(half_width, rng.uniform(0.2, 0.27))
    thorax = ellipse_points((0, -0.3), (0.28 * girth, 0.29))
    eye = area(ellipse_points((0.18, -0.72), (0.07, 0.12)), (30, 24, 26))
    feeler = curve_points([(0.07, -0.84), (0.16, -0.98), (0.27, -1.04)])
    antenna = stroke(feeler, BEE_BLACK, 1.4 * line)
    return [
        *leg_shapes((-0.42, -0.28, -0.12), look, BEE_BLACK, 0.72, 2.4 * line),
        *both_sides([antenna]),
        *fur_shapes((0, 0.38), (half_width, 0.52), yellow, rng),
        *body_segment((0, 0.38), (half_width, 0.52), yellow, line),
        *stripes,
        *fur_shapes((0, -0.3), (0.29 * girth, 0.3), yellow, rng),
        area(thorax, mix_colours(yellow, BEE_BLACK, 0.25)),
        *fur_shapes((0, -0.3), (0.2 * girth, 0.2), dusky, rng, count=30),
        *body_segment((0, -0.7), (0.2, 0.15), BEE_BLACK, line),
        *both_sides([eye]),
        *both_sides([*hind_wing, *fore_wing]),
    ]


def abdomen_stripes(half_width: float, step: float) -> list[Shape]:
    """Dark bands across the hind segment of a bee, `step` apart."""
    stripes = []
    for top in np.arange(0.0, 0.85, step):
        y = np.linspace(top, top + 0.11, 5)
        height = (y - 0.38) / 0.52  # within the segment, -1 to 1
        x = half_width * np.sqrt(np.clip(1 - height**2, 0, 1))
        right = np.stack([x, y], axis=1)
        stripes.append(area(np.concatenate([right, mirror_points(right)]), BEE_BLACK))
    return stripes


def wing_shapes(length: float, width: float, angle: float, y: float, line: float) -> list[Shape]:
    """One transparent wing on the right; `angle` in degrees, 0 is to the side, 90 to the tail."""
    outline = [(0, 0), (0.45, -1), (0.9, -0.8), (1, 0.1), (0.6, 0.7)]
    vein = [(0, 0), (0.5, -0.3), (0.92, -0.1)]
    scale = (length, width)
    rotation = rotation_matrix(-math.radians(angle))
    edge = curve_points(np.array(outline) * scale, closed=True) @ rotation
    fold = curve_points(np.array(vein) * scale) @ rotation
    glass = area(edge, (236, 240, 248, 120), (110, 100, 96), 0.6 * line)
    return shift_shapes([glass, stroke(fold, (130, 120, 116), 0.4 * line)], 0.16, y)


def bend_shapes(shapes: Iterable[Shape], bend: float) -> list[Shape]:
    """The same shapes along a bent body."""
    bent = []
    for shape in shapes:
        offset = np.outer(shape.points[:, 1] ** 2, (bend, 0))
        bent.append(replace(shape, points=shape.points + offset))
    return bent


def paint_shadow(image: Image.Image, shapes: Iterable[Shape], pose: Pose) -> None:
    """Darkens the ground under the shapes; painted at a quarter of the size, since it is soft."""
    shadow = Image.new("RGB", (image.width // 4, image.height // 4))
    offset = 0.07 * pose.scale
    small = Pose(matrix=pose.matrix / 4, centre=(pose.centre + offset) / 4)
    white = []
    for shape in shapes:
        fill = WHITE if shape.fill else None
        line = WHITE if shape.line else None
        white.append(replace(shape, fill=fill, line=line))
    paint_shapes(shadow, white, small)
    soft = shadow.convert("L").filter(ImageFilter.GaussianBlur(3))
    faint = soft.point(lambda value: 0.45 * value)
    mask = faint.resize(image.size, Image.Resampling.BILINEAR)
    image.paste((20, 16, 20), mask=mask)


BODIES = {"ants": draw_ant, "bees": draw_bee}


def paint_insect(name: str, look: InsectLook, rng: random.Random) -> Image.Image:
    """Paints one insect, `name` "ants" or "bees": an RGB image of the look's size."""
    image = insect_backdrop(look)
    shapes = bend_shapes(BODIES[name](look, rng), look.bend)
    paint_shadow(image, shapes, look.pose)
    paint_shapes(image, shapes, look.pose)
    paint_grass(image, look)
    blur = ImageFilter.GaussianBlur(look.focus)
    sharp = image.reduce(SUPERSAMPLING)
    blurred = sharp.filter(blur)
    return blurred.point(lambda value: min(255, round(value * look.light)))
