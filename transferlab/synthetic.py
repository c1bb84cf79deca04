"""Drawn stand-ins for the two datasets: faces with seven expressions, and ants and bees, as vector drawings.

They let everything run where no dataset can be had. What is measured on them says that the code works; it says nothing
about manga or about photographs of insects.

A drawing is a list of shapes `(points [K, 2], fill, line, width)` in units of its subject (x to the right, y down; a face
is about 2 wide, an insect about 2 long), painted in order. Everything that must not give the class away (identity, hair,
colours, background, pose, size) is a "look", chosen by functions that are never told the class.
"""

import math
import random
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .errors import UserError

DRAWING_VERSION = 1  # part of the marker: a folder of older drawings is not taken for one of these
SUPERSAMPLING = 3  # painted at three times the size, then averaged down: smooth edges
INK = (45, 36, 44)
WHITE = (255, 255, 255)

# ---- folders ---------------------------------------------------------------------------------------------------------


def draw_faces(folder, *, per_class=20, seed=0):
    """Draws comic faces with seven expressions to `folder/CLASS/NNN.png`, RGB, about 256 px -> Path of the folder.

    A folder that an earlier call with the same parameters has drawn is returned as it is. Picture NNN of a class is the
    same whatever `per_class` is.

    Raises:
        UserError: `folder` is there and is not such a drawing, cannot be written, or `per_class` is below 1.
    """
    if per_class < 1:
        raise UserError(f"per_class is {per_class}: draw 1 or more faces a class")
    pictures = [(name, name, number) for number in range(per_class) for name in sorted(EXPRESSIONS)]
    note = f"Drawn comic faces, no dataset: version {DRAWING_VERSION}, per_class={per_class}, seed={seed}\n"
    return fill_drawn_folder(
        folder, pictures, note, draw_look=draw_face_look, paint=paint_face, seed=f"faces {seed}"
    )


def draw_insects(folder, *, per_class=40, seed=0):
    """Draws ants and bees to `folder/{train,val}/{ants,bees}/NNN.png`, RGB, about 256 px -> Path of the folder.

    62 % of a class go to train, as in the tutorial's 244/153. A folder that an earlier call with the same parameters has
    drawn is returned as it is. Picture NNN of a class is the same whatever `per_class` is; its split is not.

    Raises:
        UserError: `folder` is there and is not such a drawing, cannot be written, or `per_class` is below 2.
    """
    if per_class < 2:
        raise UserError(
            f"per_class is {per_class}: draw 2 or more insects a class, one to train on and one to validate"
        )
    n_train = min(per_class - 1, round(0.62 * per_class))
    pictures = [
        (f"{'train' if number < n_train else 'val'}/{name}", name, number)
        for number in range(per_class)
        for name in ("ants", "bees")
    ]
    note = f"Drawn ants and bees, no dataset: version {DRAWING_VERSION}, per_class={per_class}, seed={seed}\n"
    return fill_drawn_folder(
        folder,
        pictures,
        note,
        draw_look=draw_insect_look,
        paint=paint_insect,
        seed=f"insects {seed}",
    )


def fill_drawn_folder(folder, pictures, note, *, draw_look, paint, seed):
    """Paints pictures, a list of (sub-folder, class, number), into a new folder, whole or not at all -> its Path.

    `note` goes to the marker file SYNTHETIC; `paint(class, look, rng)` makes a picture.
    """
    folder = Path(folder).expanduser()
    if is_drawn_folder(folder, note):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Made beside its place and renamed into it: an interrupted drawing leaves nothing that looks finished.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            drawing = Path(temporary) / folder.name
            for place, (sub_folder, name, number) in enumerate(pictures):
                # Look and class have generators of their own: of the class, a look knows nothing.
                look = draw_look(random.Random(f"{seed} look {place}"))
                (drawing / sub_folder).mkdir(parents=True, exist_ok=True)
                paint(name, look, random.Random(f"{seed} class {place}")).save(
                    drawing / sub_folder / f"{number:03d}.png"
                )
            (drawing / "SYNTHETIC").write_text(note, encoding="utf-8")
            drawing.rename(folder)
    except OSError as error:
        if not is_drawn_folder(
            folder, note
        ):  # another process may have drawn the same in the meantime
            raise UserError(f"drawings cannot be written to {folder}: {error}") from error
    return folder


def is_drawn_folder(folder, note):
    """Says whether `folder` already holds these drawings.

    Raises:
        UserError: something else is there; it is never overwritten.
    """
    if not folder.exists() and not folder.is_symlink():
        return False
    marker = folder / "SYNTHETIC"
    found = marker.read_text(encoding="utf-8").strip() if marker.is_file() else "no file SYNTHETIC"
    if found != note.strip():
        raise UserError(
            f"{folder} is there and is not the drawing asked for ({found}): delete it or give another folder"
        )
    return True


# ---- shapes ----------------------------------------------------------------------------------------------------------


def ellipse_points(x, y, radius_x, radius_y, start=0, end=360, count=36):
    """Points [count, 2] on an ellipse from angle `start` to `end` in degrees (0 is right, 90 is down)."""
    angles = np.radians(np.linspace(start, end, count))
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


def curve_points(anchors, closed=False, count=8):
    """A smooth curve through the anchors (Catmull-Rom), `count` points to a segment: [K, 2]."""
    anchors = np.asarray(anchors, dtype=float)
    before, after = (anchors[-1:], anchors[:2]) if closed else (anchors[:1], anchors[-1:])
    padded = np.concatenate([before, anchors, after])
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = np.linspace(0, 1, count, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, anchors[-1:]])


def area(points, fill, line=None, width=0.0):
    """A filled shape, outlined where `line` is a colour."""
    return np.asarray(points, dtype=float), fill, line, width


def stroke(points, colour, width):
    """An open line of constant width, with round ends."""
    return np.asarray(points, dtype=float), None, colour, width


def brush_stroke(anchors, colour, width):
    """A smooth line that swells to `width` in its middle, as a pen draws it."""
    points = curve_points(anchors)
    along = np.gradient(points, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(
        along, axis=1, keepdims=True
    )
    swell = 0.5 * width * (0.25 + 0.75 * np.sin(np.linspace(0, np.pi, len(points))))[:, None]
    return area(np.concatenate([points + swell * across, (points - swell * across)[::-1]]), colour)


def mirror_shapes(shapes, side=-1):
    """The same shapes on the other side (x changes its sign); `side=1` leaves them as they are."""
    return [(points * (side, 1), fill, line, width) for points, fill, line, width in shapes]


def shift_shapes(shapes, x, y):
    """The same shapes, shifted."""
    return [(points + (x, y), fill, line, width) for points, fill, line, width in shapes]


def enlarge_shapes(shapes, factor):
    """The same shapes, larger; their lines keep their width."""
    return [(points * factor, fill, line, width) for points, fill, line, width in shapes]


def mix_colours(one, other, share):
    """The colour between two; `share` is the other's part."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other))


def paint_shapes(image, shapes, matrix, centre):
    """Paints shapes in order; `matrix` [2, 2] and `centre` [2] take their units to the image's pixels."""
    pen = ImageDraw.Draw(image, "RGBA")  # in this mode a fill with a fourth number is transparent
    scale = math.sqrt(abs(np.linalg.det(matrix)))
    for points, fill, line, width in shapes:
        pixels = points @ matrix.T + centre
        if fill:
            pen.polygon(pixels.ravel().tolist(), fill=fill)
        if line:
            paint_line(pen, pixels, line, max(1, round(width * scale)), closed=bool(fill))


def paint_line(pen, pixels, colour, width, closed):
    """Paints one line; dots round its ends and sharp corners, which Pillow leaves open."""
    if closed:
        pixels = np.concatenate([pixels, pixels[:1]])
    pen.line(pixels.ravel().tolist(), fill=colour, width=width)
    steps = np.diff(pixels, axis=0)
    turns = np.abs(np.diff(np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))))
    corners = [0, *(1 + np.flatnonzero(turns > 0.3)), len(pixels) - 1]
    for x, y in pixels[corners]:
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)


def draw_pose(rng, *, size, turn, scale):
    """A random pose, (matrix [2, 2], centre [2]) in painted pixels: turn of at most `turn` degrees, shift, scale, shear.

    `size` is the image's (width, height); `scale` the range of one unit as a share of the shorter side.
    """
    angle, shear, stretch = (
        math.radians(rng.uniform(-turn, turn)),
        rng.uniform(-0.12, 0.12),
        rng.uniform(0.94, 1.06),
    )
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    unit = rng.uniform(*scale) * min(size) * SUPERSAMPLING
    matrix = (
        unit
        * rotation
        @ np.array([[stretch, shear], [0, 1 / stretch]])
        @ np.diag([rng.choice((-1, 1)), 1])
    )
    centre = (
        np.array(
            [size[0] * (0.5 + rng.uniform(-0.07, 0.07)), size[1] * (0.5 + rng.uniform(-0.07, 0.07))]
        )
        * SUPERSAMPLING
    )
    return matrix, centre


def draw_size(rng):
    """A random image size in pixels, (width, height): about 256, not always square."""
    return rng.choice(
        ((256, 256), (256, 256), (240, 272), (272, 240), (224, 256), (256, 288), (300, 256))
    )


# ---- faces: the look, which is chosen without knowing the class ------------------------------------------------------

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


def draw_face_look(rng):
    """Chooses everything about a face but its expression: a dict."""
    manga = rng.random() < 0.35  # grey, as printed
    hair = (
        rng.choice(((38, 36, 40), (96, 94, 98), (160, 158, 162), (232, 232, 234)))
        if manga
        else rng.choice(HAIRS)
    )
    size = draw_size(rng)
    return dict(
        manga=manga,
        size=size,
        pose=draw_pose(rng, size=size, turn=12, scale=(0.31, 0.40)),
        backdrop=rng.choice(("flat", "gradient", "stripes", "dots", "rays", "bubbles", "halves")),
        backdrop_colours=rng.sample(BACKDROPS, 2),
        backdrop_seed=rng.random(),
        line=rng.uniform(0.022, 0.042),
        skin=(252, 252, 250) if manga else rng.choice(SKINS),
        hair=hair,
        iris=mix_colours(rng.choice(IRISES), (90, 90, 90), 1.0 if manga else 0.0),
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


def face_backdrop(look):
    """The background of a face, an image at painting size."""
    rng = random.Random(look["backdrop_seed"])
    width, height = (side * SUPERSAMPLING for side in look["size"])
    first, second = look["backdrop_colours"]
    soft = mix_colours(first, second, 0.6)
    image = Image.new("RGB", (width, height), first)
    pen = ImageDraw.Draw(image)
    if look["backdrop"] == "gradient":
        mask = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(image.size)
        image.paste(Image.new("RGB", image.size, second), mask=mask)
    elif look["backdrop"] == "stripes":
        step, lean = rng.randint(50, 110), rng.randint(-200, 200)
        for x in range(-300, width + 300, step):
            pen.polygon(
                (x, 0, x + step // 2, 0, x + step // 2 + lean, height, x + lean, height), fill=soft
            )
    elif look["backdrop"] == "dots":
        step, radius = rng.randint(30, 60), rng.uniform(0.16, 0.32)
        for row, y in enumerate(range(0, height + step, step)):
            for x in range(-(row % 2) * step // 2, width + step, step):
                pen.ellipse(
                    (x - radius * step, y - radius * step, x + radius * step, y + radius * step),
                    fill=soft,
                )
    elif look["backdrop"] == "rays":
        x, y, rays = (
            width * rng.uniform(0.3, 0.7),
            height * rng.uniform(0.3, 0.7),
            rng.randint(9, 20),
        )
        for ray in range(rays):
            box = (x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width)
            pen.pieslice(box, 360 * ray / rays, 360 * (ray + 0.5) / rays, fill=soft)
    elif look["backdrop"] == "bubbles":
        for _ in range(14):
            x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(20, 110)
            pen.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=mix_colours(first, second, rng.random()),
            )
    elif look["backdrop"] == "halves":
        y = height * rng.uniform(0.4, 0.7)
        pen.polygon((0, y, width, y + rng.uniform(-90, 90), width, height, 0, height), fill=second)
    return image


def body_shapes(look):
    """Neck, shoulders and collar."""
    shade, line = mix_colours(look["skin"], (150, 90, 90), 0.22), look["line"]
    shoulders = curve_points(
        [(-1.5, 2.6), (-1.25, 1.72), (-0.35, 1.42), (0.35, 1.42), (1.25, 1.72), (1.5, 2.6)]
    )
    collar = [(-0.36, 1.40), (0.0, 1.85), (0.36, 1.40), (0.5, 1.52), (0.0, 2.1), (-0.5, 1.52)]
    return [
        area([(-0.26, 0.7), (0.26, 0.7), (0.3, 1.5), (0.0, 1.9), (-0.3, 1.5)], shade, INK, line),
        area(shoulders, look["cloth"], INK, line),
        area([(-0.28, 1.38), (0.28, 1.38), (0.0, 1.8)], shade),
        area(collar, mix_colours(look["cloth"], WHITE, 0.6), INK, line),
    ]


def head_shapes(look):
    """Ears, the bare face and the nose."""
    w, chin, jaw, line = look["width"], look["chin"], look["jaw"], look["line"]
    right = [(0.75 * w, -0.75), (w, -0.1), (0.92 * w, 0.4), (jaw, 0.78), (0.14, chin)]
    outline = curve_points([(0, -1.0), *right, *[(-x, y) for x, y in reversed(right)]], closed=True)
    ear = area(ellipse_points(w, 0.2, 0.14, 0.22), look["skin"], INK, line)
    nose = {
        "dot": [area(ellipse_points(0.02, 0.43, 0.025, 0.02, count=12), INK)],
        "hook": [brush_stroke([(0.03, 0.34), (0.07, 0.44), (-0.01, 0.47)], INK, 0.8 * line)],
        "none": [],
    }[look["nose"]]
    return [ear, *mirror_shapes([ear]), area(outline, look["skin"], INK, line), *nose]


def back_hair_shapes(look):
    """The hair behind the head."""
    w, hair, line = look["width"], mix_colours(look["hair"], (20, 10, 30), 0.18), look["line"]
    right = {
        "bob": [(1.2 * w, -0.3), (1.3 * w, 0.5), (1.0 * w, 1.05)],
        "long": [(1.2 * w, -0.3), (1.25 * w, 0.8), (1.45 * w, 1.7), (1.1 * w, 2.3)],
    }.get(look["back"], [(1.12 * w, -0.3), (1.02 * w, 0.4), (0.5 * w, 0.8)])
    cap = [
        (0, -1.25),
        (0.8 * w, -1.05),
        *right,
        *[(-x, y) for x, y in reversed(right)],
        (-0.8 * w, -1.05),
    ]
    cap = area(curve_points(cap, closed=True), hair, INK, line)
    tail = [(0.95, -0.75), (1.45, -0.8), (1.75, 0.1), (1.6, 1.2), (1.3, 0.5), (1.2, -0.2)]
    tail = area(curve_points(tail, closed=True), hair, INK, line)
    bun = area(ellipse_points(0.72, -1.12, 0.36, 0.34), hair, INK, line)
    angles = np.radians(np.linspace(165, 375, 15))
    reach = np.where(np.arange(15) % 2, 1.6, 1.12)
    spikes = area(
        np.stack([reach * w * np.cos(angles), -0.1 + reach * np.sin(angles)], axis=1),
        hair,
        INK,
        line,
    )
    extra = {
        "tails": [tail, *mirror_shapes([tail])],
        "ponytail": [tail],
        "buns": [bun, *mirror_shapes([bun])],
        "spikes": [spikes],
    }
    return [*extra.get(look["back"], []), cap]


def front_hair_shapes(look):
    """The hair over the forehead, its shine, and a ribbon."""
    w, line, hair = look["width"], look["line"], look["hair"]
    rise = [(1.08 * w, 0.0), (1.1 * w, -0.5), (0.72 * w, -1.08)]
    outer = curve_points([*[(-x, y) for x, y in rise], (0, -1.27), *reversed(rise)])
    ends = np.linspace(0.86 * w, -0.86 * w, look["locks"] + 1)
    fringe = []
    for start, end in zip(ends, ends[1:]):
        middle = (start + end) / 2
        lean, depth = {
            "locks": (0.0, -0.28 + 0.08 * math.cos(9 * middle + look["parting"])),
            "parted": (
                0.25 * np.sign(middle - look["parting"]),
                -0.55 + 0.45 * min(1, abs(middle - look["parting"])),
            ),
            "blunt": (0.0, -0.36),
            "swept": (0.28, -0.4 + 0.16 * middle / w),
        }[look["fringe"]]
        fringe += [
            (start, depth - (0.05 if look["fringe"] == "blunt" else 0.3)),
            (middle + lean, depth),
        ]
    side = look["side_locks"]
    right = [(1.02 * w, side), (0.9 * w, 0.3 * side), (0.86 * w, -0.35)]
    hairline = np.array([*right, *fringe, *[(-x, y) for x, y in reversed(right)]])
    shine = brush_stroke(
        [(-0.62 * w, -0.78), (-0.3 * w, -0.92), (0.12 * w, -0.95)],
        mix_colours(hair, WHITE, 0.45),
        0.11,
    )
    loop = area([(0.62, -1.0), (0.98, -1.28), (1.06, -0.86)], look["cloth"], INK, line)
    knot = [loop, *shift_shapes(mirror_shapes([loop]), 1.24, 0.0)]
    return [
        area(np.concatenate([outer, hairline]), hair, INK, line),
        shine,
        *(knot if look["ribbon"] else []),
    ]


def glasses_shapes(look):
    """Thin round glasses."""
    rim = stroke(
        ellipse_points(look["eye_gap"], look["eye_height"] + 0.02, 0.34, 0.33),
        (90, 80, 90),
        0.8 * look["line"],
    )
    bridge = stroke(
        [(-0.1, look["eye_height"]), (0.1, look["eye_height"])], (90, 80, 90), 0.8 * look["line"]
    )
    return [rim, *mirror_shapes([rim]), bridge] if look["glasses"] else []


# ---- faces: the expression, which alone decides the class ------------------------------------------------------------

# Of brows: how far they are lifted, and how far their inner ends are pulled down. Of marks: how often each is drawn.
EXPRESSIONS = {
    "angry": dict(
        lift=-0.05,
        pull=0.24,
        eyes=("glare", "squint"),
        mouths=("grit", "shout", "frown"),
        marks={"vein": 0.6},
    ),
    "crying": dict(
        lift=0.06,
        pull=-0.16,
        eyes=("wet", "squeezed"),
        mouths=("wail", "wobble"),
        marks={"streams": 1.0},
    ),
    "embarrassed": dict(
        lift=0.02,
        pull=-0.1,
        eyes=("averted", "swirl"),
        mouths=("wobble", "tiny"),
        marks={"blush": 1.0, "sweat": 0.6},
    ),
    "happy": dict(
        lift=0.09,
        pull=-0.02,
        eyes=("open", "arched"),
        mouths=("laugh", "grin"),
        marks={"blush": 0.2},
    ),
    "pleased": dict(
        lift=0.04,
        pull=-0.03,
        eyes=("shut", "shut", "arched"),
        mouths=("smile", "cat"),
        marks={"blush": 0.3},
    ),
    "sad": dict(
        lift=0.05, pull=-0.22, eyes=("lowered", "half"), mouths=("frown",), marks={"tear": 0.5}
    ),
    "shock": dict(
        lift=0.17,
        pull=-0.04,
        eyes=("wide", "blank"),
        mouths=("gape", "gape", "wobble"),
        marks={"gloom": 0.6, "sweat": 0.3},
    ),
}
# Of open eyes: how far open, slant of the upper lid (its inner end down), size of the iris, gaze to the side and down.
OPEN_EYES = {
    "open": (1.0, 0.0, 1.0, 0.0, 0.0),
    "glare": (0.72, 0.45, 0.75, 0.0, 0.02),
    "squint": (0.5, 0.35, 0.85, 0.0, 0.0),
    "wet": (0.92, -0.2, 1.12, 0.0, 0.02),
    "averted": (0.8, -0.05, 0.85, 0.1, 0.03),
    "lowered": (0.62, -0.22, 0.95, 0.02, 0.1),
    "half": (0.5, -0.08, 1.0, 0.0, 0.02),
    "wide": (1.35, 0.0, 0.4, 0.0, 0.0),
    "blank": (1.35, 0.0, 0.0, 0.0, 0.0),
}


def draw_expression(name, look, rng):
    """Draws one variant of an expression, with its strengths varied -> the shapes of brows, eyes, mouth and marks."""
    traits = EXPRESSIONS[name]
    strength = rng.uniform(0.75, 1.15)
    marks = [mark for mark, chance in traits["marks"].items() if rng.random() < chance]
    eyes, mouth = rng.choice(traits["eyes"]), rng.choice(traits["mouths"])
    return [
        *[shape for mark in marks for shape in mark_shapes(mark, look, strength)],
        *eye_shapes(eyes, look, gaze_side=rng.choice((-1, 1))),
        *brow_shapes(look, strength * traits["lift"], strength * traits["pull"]),
        *shift_shapes(enlarge_shapes(mouth_shapes(mouth, look, strength), 1.25), 0.0, 0.73),
    ]


def brow_shapes(look, lift, pull):
    """Both brows, in the colour of the hair."""
    x, y = look["eye_gap"], look["eye_height"] - 0.43 - lift
    colour = mix_colours(look["hair"], INK, 0.65)
    brow = brush_stroke(
        [(x - 0.25, y + pull), (x, y - 0.05 + 0.1 * pull), (x + 0.25, y + 0.03 - 0.5 * pull)],
        colour,
        look["brow"],
    )
    return [brow, *mirror_shapes([brow])]


def eye_shapes(kind, look, gaze_side):
    """Both eyes."""
    shapes = []
    for side in (-1, 1):
        if kind in OPEN_EYES:
            openness, slant, iris, gaze_x, gaze_y = OPEN_EYES[kind]
            eye = open_eye(look, openness, slant, iris, gaze_x * gaze_side * side, gaze_y)
        else:
            eye = closed_eye(kind, look)
        shapes += shift_shapes(mirror_shapes(eye, side), side * look["eye_gap"], look["eye_height"])
    return shapes


def open_eye(look, openness, slant, iris, gaze_x, gaze_y):
    """One open eye around (0, 0), its outer corner at the right."""
    w, line, dark = 0.30 * look["eye_size"], look["line"], mix_colours(look["iris"], INK, 0.7)
    lids = np.linspace(-w, w, 21)

    def upper(x):
        return -0.33 * openness * np.sqrt(np.clip(1 - (x / w) ** 2, 0, 1)) - slant * x

    def lower(x):
        return 0.24 * openness * np.sqrt(np.clip(1 - (x / w) ** 4, 0, 1)) - 0.3 * slant * x

    def between_lids(points):
        x = np.clip(points[:, 0], -w, w)
        top = upper(x)
        return np.stack([x, np.clip(points[:, 1], top, np.maximum(top, lower(x)))], axis=1)

    def disc(x, y, radius_x, radius_y):
        return between_lids(
            ellipse_points(gaze_x + x, gaze_y + y, radius_x * iris, radius_y * iris)
        )

    upper_lid = np.stack([lids, upper(lids)], axis=1)
    lower_lid = np.stack([lids, lower(lids)], axis=1)
    shapes = [
        area(
            np.concatenate([upper_lid, lower_lid[::-1]]),
            WHITE,
            mix_colours(look["skin"], INK, 0.5),
            0.4 * line,
        )
    ]
    if iris:
        shapes += [
            area(disc(0, 0, 0.20, 0.28), dark),
            area(disc(0, 0.03, 0.17, 0.235), look["iris"]),
        ]
        shapes += [
            area(disc(0, -0.01, 0.09, 0.14), dark),
            area(disc(-0.07, -0.1, 0.06, 0.075), WHITE),
        ]
    lash = [upper_lid[0], *upper_lid[1:-1:2], upper_lid[-1] + (0.04, 0.02)]
    return [*shapes, brush_stroke(lash, INK, 0.085)]


def closed_eye(kind, look):
    """One closed eye around (0, 0), its outer corner at the right."""
    w, width = 0.30 * look["eye_size"], 0.075
    if kind == "arched":
        return [
            brush_stroke(
                [(-w, 0.08), (-0.5 * w, -0.07), (0, -0.12), (0.5 * w, -0.07), (w, 0.08)], INK, width
            )
        ]
    if kind == "shut":
        lashes = [
            stroke([(x, y), (1.25 * x, y + 0.07)], INK, 0.6 * look["line"])
            for x, y in ((0.6 * w, 0.09), (w, 0.0))
        ]
        return [
            brush_stroke(
                [(-w, 0.0), (-0.5 * w, 0.09), (0, 0.12), (0.5 * w, 0.09), (w, 0.0)], INK, width
            ),
            *lashes,
        ]
    if kind == "squeezed":
        return [brush_stroke([(-0.9 * w, 0.0), (0.9 * w, y)], INK, width) for y in (-0.14, 0.14)]
    turns = np.linspace(0, 5 * np.pi, 60)[:, None]  # "swirl"
    return [
        stroke(
            0.014 * turns * np.concatenate([np.cos(turns), np.sin(turns)], axis=1),
            INK,
            0.9 * look["line"],
        )
    ]


def mouth_shapes(kind, look, strength):
    """The mouth around (0, 0)."""
    line, red, tongue, s = 1.1 * look["line"], (150, 52, 58), (236, 128, 124), strength
    if kind in ("smile", "frown"):
        bend = 0.09 * s if kind == "smile" else -0.10 * s
        anchors = [
            (-0.24, -bend / 2),
            (-0.12, bend / 3),
            (0, bend / 2),
            (0.12, bend / 3),
            (0.24, -bend / 2),
        ]
        return [brush_stroke(anchors, INK, 0.06)]
    if kind == "cat":
        return [
            brush_stroke(
                [(-0.22, -0.03), (-0.12, 0.05 * s), (0, -0.03), (0.12, 0.05 * s), (0.22, -0.03)],
                INK,
                0.055,
            )
        ]
    if kind == "tiny":
        return [brush_stroke([(-0.09, 0.02), (0, -0.015), (0.09, 0.02)], INK, 0.055)]
    if kind == "wobble":
        return [
            stroke(
                curve_points([(0.07 * i, 0.035 * s * (-1) ** i) for i in range(-4, 5)]), INK, line
            )
        ]
    if kind == "laugh":
        mouth = np.concatenate(
            [[(-0.3, -0.1)], ellipse_points(0, -0.1, 0.3, 0.30 * s, 0, 180, 20)[::-1]]
        )
        return [
            area(mouth, red),
            area(ellipse_points(0, 0.22 * s - 0.1, 0.16, 0.08 * s), tongue),
            area([(-0.27, -0.1), (0.27, -0.1), (0.23, -0.03), (-0.23, -0.03)], WHITE),
            stroke([*mouth, mouth[0]], INK, line),
        ]
    if kind == "grin":
        top = curve_points([(-0.3, -0.08), (0, -0.03), (0.3, -0.08)])
        bottom = curve_points(
            [(0.3, -0.08), (0.17, 0.09 * s), (0, 0.13 * s), (-0.17, 0.09 * s), (-0.3, -0.08)]
        )
        return [area(np.concatenate([top, bottom]), WHITE, INK, line)]
    if kind == "grit":
        anchors = [
            (-0.26, 0.09),
            (-0.22, -0.06 * s),
            (0, -0.08 * s),
            (0.22, -0.06 * s),
            (0.26, 0.09),
            (0, 0.07),
        ]
        box = curve_points(anchors, closed=True)
        teeth = [stroke([(x, -0.05 * s), (x, 0.06)], INK, 0.5 * line) for x in (-0.13, 0, 0.13)]
        return [
            area(box, WHITE, INK, line),
            *teeth,
            stroke([(-0.22, 0.01), (0.22, 0.01)], INK, 0.5 * line),
        ]
    if kind == "shout":
        box = [(-0.17, -0.12 * s), (0.17, -0.12 * s), (0.25, 0.16 * s), (-0.25, 0.16 * s)]
        teeth = [(-0.17, -0.11 * s), (0.17, -0.11 * s), (0.19, -0.05 * s), (-0.19, -0.05 * s)]
        return [area(box, red, INK, line), area(teeth, WHITE)]
    if kind == "wail":
        top = [(-0.26, 0.15 * s), (-0.2, -0.08), (0, -0.14 * s), (0.2, -0.08), (0.26, 0.15 * s)]
        bottom = [(0.1, 0.1 * s), (-0.1, 0.1 * s)]
        return [area(curve_points([*top, *bottom], closed=True), red, INK, line)]
    return [area(ellipse_points(0, 0.02, 0.15, 0.2 * s), red, INK, line)]  # "gape"


def drop_points(x, y, size):
    """The outline of a falling drop, its tip at the top."""
    return curve_points(
        [(x, y - 1.3 * size), (x + 0.5 * size, y), (x, y + 0.6 * size), (x - 0.5 * size, y)],
        closed=True,
    )


def mark_shapes(kind, look, strength):
    """Signs that comics add to a face: blush, tears, sweat, a swollen vein, lines of gloom."""
    x, y, line, water = look["eye_gap"], look["eye_height"], look["line"], (176, 220, 246)
    edge = INK if look["manga"] else mix_colours(water, (50, 90, 140), 0.6)
    if kind == "blush":
        spot = area(
            ellipse_points(x + 0.06, y + 0.40, 0.27, 0.13), (240, 96, 110, round(140 * strength))
        )
        starts = [x + 0.1 * i for i in range(-1, 3)]
        hatch = [
            stroke([(start - 0.03, y + 0.46), (start + 0.04, y + 0.34)], (206, 60, 80), 0.8 * line)
            for start in starts
        ]
        return [spot, *hatch, *mirror_shapes([spot, *hatch])]
    if kind == "gloom":
        return [
            stroke(
                [(0.15 * i, -0.45), (0.15 * i, -0.12 - 0.1 * (i % 2))], (110, 120, 160), 0.8 * line
            )
            for i in range(-4, 5)
        ]
    if kind == "streams":
        left = [
            (x - 0.1, y + 0.02),
            (x - 0.13, y + 0.4),
            (x - 0.12, y + 0.72 * strength),
            (x - 0.02, y + 0.84 * strength),
        ]
        right = [(x + 0.1, y + 0.74 * strength), (x + 0.17, y + 0.4), (x + 0.16, y + 0.02)]
        stream = area(curve_points([*left, *right], closed=True), water, edge, 0.7 * line)
        gleam = brush_stroke(
            [(x - 0.04, y + 0.3), (x - 0.05, y + 0.5), (x - 0.03, y + 0.7 * strength)], WHITE, 0.06
        )
        return [stream, gleam, *mirror_shapes([stream, gleam])]
    if kind == "tear":
        return [area(drop_points(x + 0.08, y + 0.42, 0.14), water, edge, 0.6 * line)]
    if kind == "sweat":
        return [area(drop_points(0.74, -0.38, 0.2), water, edge, 0.8 * line)]
    vein = [
        stroke(
            curve_points([(a * 0.06, b * 0.2), (a * 0.07, b * 0.07), (a * 0.2, b * 0.06)]),
            (206, 40, 40),
            0.05,
        )
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    return shift_shapes(vein, 0.58, -0.62)


def paint_face(name, look, rng):
    """Paints one face with the expression `name`: an RGB image of the look's size."""
    image = face_backdrop(look)
    shapes = [
        *back_hair_shapes(look),
        *body_shapes(look),
        *head_shapes(look),
        *front_hair_shapes(look),
    ]
    paint_shapes(
        image, [*shapes, *draw_expression(name, look, rng), *glasses_shapes(look)], *look["pose"]
    )
    image = image.reduce(SUPERSAMPLING)
    return image.convert("L").convert("RGB") if look["manga"] else image


# ---- insects: the look, which is chosen without knowing the class ----------------------------------------------------

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


def draw_insect_look(rng):
    """Chooses everything about an insect's picture that ants and bees share: a dict."""
    size = draw_size(rng)
    return dict(
        size=size,
        pose=draw_pose(rng, size=size, turn=180, scale=(0.12, 0.30)),
        bend=rng.uniform(-0.16, 0.16),
        ground=rng.choice(GROUNDS),
        plants=rng.choice(("leaves", "flower", "pebbles", "grass", "none")),
        plant_colours=rng.sample(PETALS, 2),
        plant_seed=rng.random(),
        blur=rng.uniform(1, 4),  # of the ground, in pixels of the picture
        focus=rng.uniform(0.0, 1.6),  # blur of all, in the same pixels
        grass=rng.choice((0, 0, 1, 3, 5)),  # blades in front of the insect
        light=rng.uniform(0.85, 1.1),
        line=rng.uniform(0.018, 0.034),
        girth=rng.uniform(0.88, 1.14),
        dark=rng.random(),  # how dark the body is, within what its kind allows
        stance=rng.uniform(-0.12, 0.12),
    )


def insect_backdrop(look):
    """Ground and plants out of focus, an image at painting size."""
    rng = random.Random(look["plant_seed"])
    width, height = (side * SUPERSAMPLING for side in look["size"])
    image = Image.new("RGB", (width, height), look["ground"])
    mask = (
        Image.linear_gradient("L")
        .rotate(rng.choice((0, 90, 180, 270)))
        .resize(image.size)
        .point(lambda value: 0.33 * value)
    )
    image.paste(
        Image.new("RGB", image.size, mix_colours(look["ground"], rng.choice((INK, WHITE)), 0.5)),
        mask=mask,
    )
    shapes = {
        "leaves": lambda: [plant_blade(rng, look, rng.uniform(0.2, 0.4), 0.5) for _ in range(7)],
        "grass": lambda: [plant_blade(rng, look, rng.uniform(0.4, 0.9), 0.06) for _ in range(22)],
        "pebbles": lambda: [pebble_shape(rng, look) for _ in range(24)],
        "flower": lambda: flower_shapes(rng, look),
        "none": lambda: [],
    }[look["plants"]]()
    paint_shapes(image, shapes, np.diag([float(width), float(height)]), np.zeros(2))
    blurred = image.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(look["blur"]))
    return blurred.resize((width, height), Image.Resampling.BILINEAR)


def pebble_shape(rng, look):
    """One pebble somewhere in the unit square."""
    colour = mix_colours(look["ground"], rng.choice(look["plant_colours"]), rng.uniform(0.2, 0.7))
    return area(
        ellipse_points(rng.random(), rng.random(), rng.uniform(0.03, 0.12), rng.uniform(0.03, 0.1)),
        colour,
    )


def plant_blade(rng, look, length, plumpness):
    """One leaf or blade of grass somewhere in the unit square."""
    x, y, angle = rng.random(), rng.random(), rng.uniform(0, 2 * math.pi)
    along, across = (
        np.array([math.cos(angle), math.sin(angle)]),
        np.array([-math.sin(angle), math.cos(angle)]),
    )
    half, wide = length / 2 * along, plumpness * length / 2 * across
    colour = mix_colours(look["plant_colours"][0], look["ground"], rng.uniform(0.1, 0.7))
    return area(np.array([x, y]) + curve_points([-half, wide, half, -wide], closed=True), colour)


def paint_grass(image, look):
    """Paints a few blades of grass in front of the insect."""
    rng = random.Random(look["plant_seed"] + 1)
    blades = [plant_blade(rng, look, rng.uniform(0.6, 1.4), 0.04) for _ in range(look["grass"])]
    paint_shapes(image, blades, np.diag([float(image.width), float(image.height)]), np.zeros(2))


def flower_shapes(rng, look):
    """One large flower in the unit square."""
    x, y, reach = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0.28, 0.45)
    petals, start = rng.randint(5, 9), rng.random()
    shapes = []
    for angle in np.linspace(0, 2 * math.pi, petals, endpoint=False) + start:
        petal = ellipse_points(reach * 0.6, 0, reach * 0.45, reach * 0.24)
        turned = petal @ np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        shapes.append(
            area(
                turned + (x, y), mix_colours(look["plant_colours"][0], WHITE, rng.uniform(0, 0.25))
            )
        )
    return [
        *shapes,
        area(ellipse_points(x, y, reach * 0.25, reach * 0.25), look["plant_colours"][1]),
    ]


# ---- insects: the body plan, which alone decides the class -----------------------------------------------------------


def leg_shapes(hips, look, colour, reach, width):
    """Six jointed legs; `hips` are the y of the three on a side."""
    shapes = []
    for side in (-1, 1):
        for hip, direction in zip(hips, (-0.55, 0.1, 0.75)):
            lean = direction + side * look["stance"]
            knee = (0.52 * reach, hip + 0.35 * lean - 0.05)
            foot = (0.85 * reach, hip + 0.95 * lean)
            leg = [
                stroke([(0.08, hip), knee], colour, width),
                stroke([knee, foot], colour, 0.65 * width),
                stroke([foot, (foot[0] + 0.08, foot[1] + 0.12 * lean)], colour, 0.5 * width),
            ]
            shapes += mirror_shapes(leg, side)
    return shapes


def body_segment(x, y, radius_x, radius_y, colour, line):
    """One glossy segment."""
    return [
        area(
            ellipse_points(x, y, radius_x, radius_y),
            colour,
            mix_colours(colour, (0, 0, 0), 0.55),
            line,
        ),
        area(
            ellipse_points(x - 0.35 * radius_x, y - 0.3 * radius_y, 0.3 * radius_x, 0.4 * radius_y),
            (255, 255, 255, 55),
        ),
    ]


def fur_shapes(x, y, radius_x, radius_y, colour, rng, count=60):
    """Short hairs around a segment."""
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    shapes = []
    for angle in angles:
        out = np.array([radius_x * math.cos(angle), radius_y * math.sin(angle)])
        shade = mix_colours(colour, rng.choice((WHITE, INK)), rng.uniform(0, 0.35))
        shapes.append(
            stroke([(x, y) + 0.8 * out, (x, y) + rng.uniform(1.06, 1.22) * out], shade, 0.03)
        )
    return shapes


def draw_ant(look, rng):
    """An ant from above: three segments, a narrow waist, elbowed antennae, no wings."""
    hues = ((34, 28, 28), (86, 50, 32), (142, 62, 36), (190, 130, 58), (60, 44, 40))
    colour = mix_colours(rng.choice(hues), (24, 20, 20), 0.5 * look["dark"])
    rear = mix_colours(colour, (20, 16, 16), rng.choice((0, 0, 0.5)))
    line, g, limb = look["line"], look["girth"], mix_colours(colour, (20, 16, 16), 0.25)
    head, tail = rng.uniform(0.2, 0.27) * g, rng.uniform(0.24, 0.34) * g
    elbow, reach = rng.uniform(0.3, 0.42), rng.uniform(0.85, 1.1)
    antenna = [
        stroke([(0.08, -0.78), (elbow, -0.98)], limb, 1.6 * line),
        stroke(
            curve_points([(elbow, -0.98), (elbow - 0.02, -1.2), (elbow - 0.14, -1.4)]),
            limb,
            1.4 * line,
        ),
    ]
    jaw = area([(0.03, -0.8), (0.12, -0.8), (0.09, -0.93), (0.01, -0.9)], limb)
    crease = mix_colours(rear, (0, 0, 0), 0.4)
    bands = [
        stroke(ellipse_points(0, y, 0.93 * tail, 0.1, 20, 160, 12), crease, 0.7 * line)
        for y in (0.52, 0.68)
    ]
    return [
        *leg_shapes((-0.3, -0.16, -0.02), look, limb, reach, 2.2 * line),
        *antenna,
        *mirror_shapes(antenna),
        jaw,
        *mirror_shapes([jaw]),
        *body_segment(0, 0.62, tail, 0.38, rear, line),
        *bands,
        *body_segment(0, 0.17, 0.06, 0.08, colour, line),
        *body_segment(0, -0.18, 0.14 * g, 0.29, colour, line),
        *body_segment(0, -0.62, head, 0.22, colour, line),
    ]


def draw_bee(look, rng):
    """A bee from above: a furry striped body, large eyes, two pairs of wings."""
    hues = (
        (234, 180, 50),
        (222, 150, 44),
        (240, 206, 110),
        (200, 130, 60),
        (110, 84, 60),
    )  # the last one is a dark bee
    yellow = mix_colours(rng.choice(hues), (60, 44, 34), 0.45 * look["dark"])
    black, line, g = (44, 34, 30), look["line"], look["girth"]
    spread, length, wide = rng.uniform(0, 50), rng.uniform(0.8, 1.02), 0.33 * g
    wing = [
        *wing_shapes(0.72 * length, 0.16, spread + 30, -0.16, line),
        *wing_shapes(length, 0.2, spread, -0.3, line),
    ]
    stripes = []
    for y in np.arange(0.0, 0.85, rng.uniform(0.2, 0.27)):
        band = np.linspace(y, y + 0.11, 5)
        half = wide * np.sqrt(np.clip(1 - ((band - 0.38) / 0.52) ** 2, 0, 1))
        stripes.append(
            area(
                np.concatenate([np.stack([half, band], 1), np.stack([-half, band], 1)[::-1]]), black
            )
        )
    eye = area(ellipse_points(0.18, -0.72, 0.07, 0.12), (30, 24, 26), None)
    antenna = stroke(curve_points([(0.07, -0.84), (0.16, -0.98), (0.27, -1.04)]), black, 1.4 * line)
    return [
        *leg_shapes((-0.42, -0.28, -0.12), look, black, 0.72, 2.4 * line),
        antenna,
        *mirror_shapes([antenna]),
        *fur_shapes(0, 0.38, wide, 0.52, yellow, rng),
        *body_segment(0, 0.38, wide, 0.52, yellow, line),
        *stripes,
        *fur_shapes(0, -0.3, 0.29 * g, 0.3, yellow, rng),
        area(ellipse_points(0, -0.3, 0.28 * g, 0.29), mix_colours(yellow, black, 0.25)),
        *fur_shapes(0, -0.3, 0.2 * g, 0.2, mix_colours(yellow, black, 0.15), rng, 30),
        *body_segment(0, -0.7, 0.2, 0.15, black, line),
        eye,
        *mirror_shapes([eye]),
        *wing,
        *mirror_shapes(wing),
    ]


def wing_shapes(length, width, angle, y, line):
    """One transparent wing on the right; `angle` in degrees, 0 points to the side and 90 to the tail."""
    outline = [
        (0, 0),
        (0.45 * length, -width),
        (0.9 * length, -0.8 * width),
        (length, 0.1 * width),
        (0.6 * length, 0.7 * width),
    ]
    vein = [(0, 0), (0.5 * length, -0.3 * width), (0.92 * length, -0.1 * width)]
    turn = math.radians(angle)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    glass = area(
        curve_points(outline, closed=True) @ rotation,
        (236, 240, 248, 120),
        (110, 100, 96),
        0.6 * line,
    )
    return shift_shapes(
        [glass, stroke(curve_points(vein) @ rotation, (130, 120, 116), 0.4 * line)], 0.16, y
    )


def bend_shapes(shapes, bend):
    """The same shapes along a bent body."""
    return [
        (points + np.outer(points[:, 1] ** 2, (bend, 0)), fill, line, width)
        for points, fill, line, width in shapes
    ]


def paint_shadow(image, shapes, matrix, centre):
    """Darkens the ground under the shapes; painted at a quarter of the size, since it is soft."""
    shadow = Image.new("RGB", (image.width // 4, image.height // 4))
    offset = 0.07 * math.sqrt(abs(np.linalg.det(matrix)))
    white = [
        (points, fill and WHITE, line and WHITE, width) for points, fill, line, width in shapes
    ]
    paint_shapes(shadow, white, matrix / 4, (centre + offset) / 4)
    mask = shadow.convert("L").filter(ImageFilter.GaussianBlur(3)).point(lambda value: 0.45 * value)
    image.paste((20, 16, 20), mask=mask.resize(image.size, Image.Resampling.BILINEAR))


def paint_insect(name, look, rng):
    """Paints one insect, `name` "ants" or "bees": an RGB image of the look's size."""
    image = insect_backdrop(look)
    shapes = bend_shapes({"ants": draw_ant, "bees": draw_bee}[name](look, rng), look["bend"])
    paint_shadow(image, shapes, *look["pose"])
    paint_shapes(image, shapes, *look["pose"])
    paint_grass(image, look)
    image = image.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(look["focus"]))
    return image.point(lambda value: min(255, round(value * look["light"])))
