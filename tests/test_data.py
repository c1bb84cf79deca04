"""From folders of every kind to an ImageSet: layouts, decoding, what is left out, the split; and
the errors that say what to do."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split

from transferlab import data
from transferlab.data import (
    MAX_SIDE,
    Rejected,
    check_parts,
    class_folders,
    find_dataset,
    find_image_folder,
    load_images,
    read_image,
    split_images,
    split_indices,
)
from transferlab.decoded import load_folder
from transferlab.download import MANGA_FACE_COUNTS, DownloadError
from transferlab.errors import DataError, UserError, WeightsError

ROOT = Path(__file__).parents[1]


def draw(path, colour=(200, 30, 60), size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_folder(root, classes=("a", "b"), parts=("",), n=3):
    for part in parts:
        for name in classes:
            for i in range(n):
                draw(root / part / name / f"{i}.png", (10 * i, 90, 40))
    return root


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode(stored):
    """The image in the bytes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")
        path.write_bytes(stored)
        return read_image(path)[0]


def pixel(tensor):
    return tuple(tensor[:, 0, 0].tolist())


@pytest.mark.parametrize("nested", ["", "x", "x/y"])
@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_layouts_are_found_when_nested(tmp_path, nested, parts):
    make_folder(tmp_path / nested, parts=parts)
    images = load_images(tmp_path)
    assert images.classes == ("a", "b") and len(images.images) == 6 * len(parts)
    assert images.split == (None if parts == ("",) else ("train",) * 6 + ("val",) * 6)
    assert images.images[0].shape == (3, 9, 12) and images.images[0].dtype == torch.uint8
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1] * len(parts)


def test_of_several_datasets_the_one_that_is_asked_for_and_never_the_extra(tmp_path):
    for name in ("manga_facial_expressions", "hymenoptera_data", "manga_facial_expressions_extra"):
        make_folder(tmp_path / name)
    assert find_dataset(tmp_path, "hymenoptera_data").name == "hymenoptera_data"
    for find in (find_image_folder, find_dataset):
        with pytest.raises(DataError, match="several image folders: .*hymenoptera_data.*name one"):
            find(tmp_path)
    (tmp_path / "hymenoptera_data").rename(tmp_path / "hymenoptera_extra")
    assert find_dataset(tmp_path).name == "manga_facial_expressions"
    assert find_dataset(tmp_path, "hymenoptera_data").name == "manga_facial_expressions"


def test_the_folder_that_is_asked_for_wins_though_it_lies_deeper(tmp_path):
    faces = make_folder(tmp_path / "faces")
    insects = make_folder(tmp_path / "x" / "insects", parts=("train", "val"))
    assert find_dataset(tmp_path, "insects") == insects
    for name in ("faces", "buttons", ""):  # what is nowhere is as nothing: the nearest
        assert find_dataset(tmp_path, name) == faces
    nearer = make_folder(tmp_path / "insects")
    assert find_dataset(tmp_path, "insects") == nearer


def test_a_folder_of_notes_beside_the_datasets_hides_none_that_is_asked_for(tmp_path):
    """With it the folder around them looks like one dataset, a class in each folder."""
    insects = make_folder(tmp_path / "insects")
    make_folder(tmp_path / "faces")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("words")
    assert find_dataset(tmp_path, "insects") == insects
    assert find_dataset(tmp_path) == tmp_path


def test_two_folders_of_the_name_that_is_asked_for_are_one_too_many(tmp_path):
    make_folder(tmp_path / "faces")
    for outer in ("x", "y"):
        make_folder(tmp_path / outer / "insects")
    with pytest.raises(DataError, match="several .*x/insects.*y/insects.*name one"):
        find_dataset(tmp_path, "insects")


def test_what_class_folders_are(tmp_path):
    unsplit = make_folder(tmp_path / "unsplit")
    assert class_folders(unsplit) == {"": [unsplit / "a", unsplit / "b"]}
    split = make_folder(tmp_path / "split", parts=("train", "val", "test", "__MACOSX", ".cache"))
    assert class_folders(split) == {
        part: [split / part / name for name in "ab"] for part in ("train", "val")
    }
    (tmp_path / "empty" / "a").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "empty", unsplit / "a"):
        assert class_folders(folder) == {}


def test_links_in_a_circle_do_not_hold_the_search_up(tmp_path):
    make_folder(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name / "up").symlink_to("..")
    assert find_image_folder(tmp_path) == find_dataset(tmp_path) == tmp_path
    assert [one.path for one in load_images(tmp_path).rejected] == ["a/up", "b/up"]


def test_folders_that_cannot_be_used_are_one_clear_error(tmp_path):
    def error(folder):
        with pytest.raises(DataError) as caught:
            load_images(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
        return str(caught.value)

    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "file", "empty"):
        assert "holds no images: expected CLASS/*" in error(tmp_path / name)
    one = error(make_folder(tmp_path / "one", classes=("a",)))
    assert "needs two or more classes" in one and "['a']" in one
    (make_folder(tmp_path / "hole") / "c").mkdir()
    (tmp_path / "hole" / "a" / "x.png").write_text("no picture")  # no reason for the hole
    hole = error(tmp_path / "hole")
    assert "hole/c: no image can be read []: add some" in hole
    (make_folder(tmp_path / "bad") / "c").mkdir()
    (tmp_path / "bad" / "c" / "x.png").write_text("no picture")
    bad = error(tmp_path / "bad")
    assert "bad/c: no image can be read" in bad
    assert "c/x.png" in bad and "cannot identify image file" in bad
    make_folder(tmp_path / "differ", classes=("a", "b"), parts=("train",))
    make_folder(tmp_path / "differ", classes=("a", "c"), parts=("val",))
    differ = error(tmp_path / "differ")
    assert "same in both: {'train': ['a', 'b'], 'val': ['a', 'c']}" in differ
    try:
        os.mkdir(os.fsencode(make_folder(tmp_path / "code page")) + b"/\xb0\xa1")
    except OSError:
        return  # this file system takes Unicode names only
    draw(tmp_path / "code page" / os.fsdecode(b"\xb0\xa1") / "0.png")
    printable = error(tmp_path / "code page")
    assert "printable" in printable and "\\udcb0\\udca1" in printable


def test_what_is_left_out_is_listed_with_its_reason(tmp_path):
    folder = make_folder(tmp_path / "images") / "a"
    whole = encoded(Image.effect_noise((60, 60), 90), "JPEG")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    (folder / "inner").mkdir()
    draw(folder / "inner" / "x.png")
    draw(folder / "imageNotFound.png")
    images = load_images(tmp_path / "images")
    reasons = {one.path: one.reason for one in images.rejected}
    expected = {
        f"a/{n}" for n in ("cut.jpg", "empty.png", "text.jpg", "inner", "imageNotFound.png")
    }
    assert len(images.images) == 6 and set(reasons) == expected
    assert "truncated" in reasons["a/cut.jpg"]
    for name in ("a/text.jpg", "a/empty.png"):
        assert reasons[name] == "cannot identify image file 'it'"
    assert reasons["a/inner"] == "Is a directory"
    assert "placeholder" in reasons["a/imageNotFound.png"]


def test_the_placeholder_is_known_by_its_bytes_too(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    digest = hashlib.sha256((folder / "a" / "1.png").read_bytes()).hexdigest()
    monkeypatch.setattr(data, "PLACEHOLDER", digest)
    assert [one.path for one in load_images(folder).rejected] == ["a/1.png", "b/1.png"]


def test_every_mode_gets_its_right_colours():
    red, grey = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("L", (4, 4), 90)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    deep = Image.fromarray(np.full((4, 4), 32896, np.uint16))
    for image, format, options, expected in (
        (red, "PNG", {}, (255, 0, 0)),
        (grey, "PNG", {}, (90, 90, 90)),
        (Image.new("1", (4, 4), 1), "PNG", {}, (255, 255, 255)),
        (clear, "PNG", {}, (255, 255, 255)),
        (half, "PNG", {}, (255, 127, 127)),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", {}, (255, 255, 255)),
        (palette, "PNG", {}, (0, 255, 0)),
        (palette, "PNG", {"transparency": 1}, (255, 255, 255)),
        (grey, "PNG", {"transparency": 90}, (255, 255, 255)),
        (deep, "PNG", {}, (128, 128, 128)),
        (deep, "TIFF", {}, (128, 128, 128)),
    ):
        assert pixel(decode(encoded(image, format, **options))) == expected, (image.mode, options)
    cyan_free = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    cmyk = pixel(decode(encoded(cyan_free, "JPEG", quality=95)))
    assert cmyk[0] > 250 and max(cmyk[1:]) < 5
    frames = [Image.new("RGB", (4, 4), "blue"), Image.new("RGB", (4, 4), "red")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(decode(moving)) == (0, 0, 255)
    with pytest.raises(UserError, match="range is unknown: save as 8 or 16 bit"):
        decode(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    picture = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(4, 9) * 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(picture, "PNG", exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(stored))))
    assert (decode(stored)[0].numpy() == expected).all()
    assert expected.shape == ((4, 9) if orientation < 5 else (9, 4))


def test_the_digest_follows_bytes_and_names_not_the_place(tmp_path):
    one, two = (
        load_images(make_folder(tmp_path / "one")),
        load_images(make_folder(tmp_path / "two")),
    )
    assert one.digest == two.digest and one.paths == two.paths
    (tmp_path / "two" / "a" / "0.png").rename(tmp_path / "two" / "a" / "9.png")
    assert load_images(tmp_path / "two").digest != one.digest
    draw(tmp_path / "one" / "a" / "0.png", (1, 2, 3))
    assert load_images(tmp_path / "one").digest != one.digest
    assert not one.synthetic
    (tmp_path / "one" / "SYNTHETIC").write_text("drawn")
    assert load_images(tmp_path / "one").synthetic


def test_the_study_split():
    labels = torch.tensor([i for i, n in enumerate(MANGA_FACE_COUNTS.values()) for _ in range(n)])
    train, val = split_indices(labels, val_size=0.35, seed=42)
    assert (len(train), len(val)) == (296, 159)
    expected = train_test_split(
        np.arange(455), test_size=159, stratify=labels.numpy(), random_state=42
    )
    assert [train.tolist(), val.tolist()] == [sorted(part.tolist()) for part in expected]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=6), st.floats(0.05, 0.6), st.integers(0, 99)
)
def test_a_split_is_a_partition_in_the_proportions_of_the_classes(counts, val_size, seed):
    labels = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)])
    try:
        train, val = split_indices(labels, val_size=val_size, seed=seed)
    except DataError as error:
        assert "cannot split" in str(error)
        return
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    assert len(val) == int(val_size * len(labels))
    share = len(val) / len(labels)
    for label, count in enumerate(counts):
        assert abs((labels[val] == label).sum() - share * count) <= 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.data())
def test_every_class_needs_images_in_every_part(labels, drawn):
    labels = torch.tensor(labels)
    places = st.lists(st.integers(0, len(labels) - 1), min_size=1, unique=True)
    parts = [torch.tensor(drawn.draw(places)) for _ in range(2)]
    classes = set(labels.tolist())
    if all(set(labels[part].tolist()) == classes for part in parts):
        check_parts(labels, parts)
        return
    sizes = f"both {len(parts[0])} and {len(parts[1])} images: add some of the rarest"
    with pytest.raises(DataError, match=f"every class needs images in {sizes}"):
        check_parts(labels, parts)


def test_real_images():
    root = os.environ.get("TRANSFERLAB_TEST_DATA")
    if not root:
        pytest.skip("TRANSFERLAB_TEST_DATA names no folder of the real images")
    manga = load_images(find_dataset(root, "manga_facial_expressions"))
    assert {
        name: manga.labels.tolist().count(i) for i, name in enumerate(manga.classes)
    } == MANGA_FACE_COUNTS
    insects = load_images(find_dataset(root, "hymenoptera_data"))
    fold = split_images(insects, val_size=0.35, seed=0)
    assert [len(part) for part in (fold.train, fold.val)] == [244, 153]
    assert [Path(one.path).name for one in insects.rejected] == ["imageNotFound.gif"]


# ---- layouts and files that archives and users bring along -------------------------------------


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
@pytest.mark.parametrize("nested", ["archive", "outer/archive"])
def test_files_beside_the_classes_do_not_make_the_outer_folder_a_dataset(tmp_path, nested, parts):
    make_folder(tmp_path / nested, parts=parts)
    for name in ("README.txt", "SYNTHETIC", "LICENSE", "labels.csv"):
        (tmp_path / nested / name).write_text("words")
    images = load_images(tmp_path)
    assert images.classes == ("a", "b") and images.name == "archive" and images.synthetic


def test_the_search_ends_at_two_folders_and_at_extra_ones(tmp_path):
    make_folder(tmp_path / "deep" / "x" / "y" / "z")
    extra = make_folder(tmp_path / "wide" / "faces_extra")
    for root, name in (
        (tmp_path / "deep", ""),
        (tmp_path / "deep", "z"),
        (tmp_path / "wide", ""),
        (tmp_path / "wide", "faces_extra"),
        (tmp_path / "nothing", ""),
    ):
        with pytest.raises(DataError, match=f"{root} holds no images .*CLASS"):
            find_dataset(root, name)
    with pytest.raises(DataError, match="holds no images"):
        find_image_folder(tmp_path / "deep")
    assert find_dataset(extra) == find_image_folder(extra) == extra  # the user's own word
    draw(tmp_path / "flat" / "0.png")
    for find in (find_image_folder, find_dataset):
        with pytest.raises(DataError, match="flat holds no images"):
            find(tmp_path / "flat")


def test_a_class_that_is_bad_in_one_split_only(tmp_path):
    make_folder(tmp_path, parts=("train", "val"))
    for path in (tmp_path / "val" / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="val/a: no image can be read .*cannot identify.*: add"):
        load_images(tmp_path)


def test_hidden_files_links_and_names_of_other_kinds(tmp_path):
    folder = make_folder(tmp_path) / "a"
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "link.png").symlink_to("nowhere.png")
    (folder / "0.png").rename(folder / "picture.txt")  # what a file holds counts, not its name
    draw(tmp_path / ".hidden" / "0.png")
    draw(tmp_path / "beside.png")
    before = load_images(tmp_path)
    assert before.paths[:3] == ("a/1.png", "a/2.png", "a/picture.txt")
    assert before.classes == ("a", "b")
    assert [one.path for one in before.rejected] == ["a/.DS_Store", "a/link.png"]
    (folder / ".DS_Store").unlink()
    assert load_images(tmp_path).digest == before.digest  # of what is used, nothing else


def test_names_that_are_no_unicode_stop_nothing(tmp_path):
    """Archives packed on Windows with a Korean code page unpack to such names."""
    make_folder(tmp_path)
    picture = (tmp_path / "a" / "0.png").read_bytes()
    try:
        with open(os.fsencode(tmp_path / "a") + b"/\xb0\xa1.png", "wb") as file:
            file.write(picture)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    images = load_images(tmp_path)
    assert images.paths[3] == "a/\\udcb0\\udca1.png" and len(images.images) == 7
    "".join(images.paths).encode()


@pytest.mark.parametrize(
    "name", ["imageNotFound.gif", "image-not-found.png", "ImageNotFound.jpg", "image not found.png"]
)
def test_the_placeholder_by_its_name(tmp_path, name):
    folder = make_folder(tmp_path) / "a"
    (folder / "0.png").rename(folder / name)
    reason = 'placeholder ("image not found"), not a picture of the class'
    assert load_images(tmp_path).rejected == (Rejected(path=f"a/{name}", reason=reason),)


# ---- decoding, pinned to formats written by hand where Pillow cannot save them -----------------


def first_row(stored):
    return decode(stored)[:, 0].T.tolist()


def png(width, depth, color_type, row, *chunks):
    """A PNG of one row (W3C PNG, section 5)."""
    header = struct.pack(">IIBBBBB", width, 1, depth, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    written = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def big_endian_tiff(values):
    """A 16-bit grey TIFF of one row, most significant byte first (TIFF 6.0, section 2)."""
    tags = [
        (256, 3, len(values)),
        (257, 3, 1),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 1),
    ]
    tags.append((279, 4, 2 * len(values)))
    pixels = struct.pack(f">{len(values)}H", *values)
    entries = [
        struct.pack(">HHIHH" if kind == 3 else ">HHII", tag, kind, 1, v, *[0] * (kind == 3))
        for tag, kind, v in tags
    ]
    return (
        b"MM\0*"
        + struct.pack(">I", 8 + len(pixels))
        + pixels
        + struct.pack(">H", len(tags))
        + b"".join(entries)
        + b"\0" * 4
    )


def test_sixteen_bits_are_scaled_not_clipped():
    values, expected = [0, 257, 12850, 32896, 65535], [[v] * 3 for v in (0, 1, 50, 128, 255)]
    assert first_row(encoded(Image.fromarray(np.array([values], np.uint16)), "PNG")) == expected
    assert first_row(big_endian_tiff(values)) == expected
    assert Image.open(io.BytesIO(big_endian_tiff(values))).mode == "I;16B"
    assert first_row(png(2, 16, 2, struct.pack(">6H", 65535, 0, 12850, 0, 32896, 65535))) == [
        [255, 0, 50],
        [0, 128, 255],
    ]
    assert first_row(png(2, 16, 4, struct.pack(">4H", 12850, 65535, 12850, 0))) == [
        [50] * 3,
        [255] * 3,
    ]
    for array in (np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32)):
        with pytest.raises(UserError, match="range is unknown"):
            decode(encoded(Image.fromarray(array), "TIFF"))


def test_transparency_is_laid_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert first_row(encoded(palette, "PNG")) == [[10, 20, 30], [200, 100, 50]]
    assert first_row(encoded(palette, "PNG", transparency=b"\xff\x00")) == [
        [10, 20, 30],
        [255, 255, 255],
    ]
    assert first_row(encoded(palette, "PNG", transparency=b"\xff\x80"))[1] == pytest.approx(
        [227, 177, 152], abs=1
    )
    assert first_row(
        png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", struct.pack(">3H", 1, 2, 3)))
    ) == [[255] * 3, [4, 5, 6]]
    assert first_row(png(2, 8, 0, bytes([9, 120]), (b"tRNS", struct.pack(">H", 9)))) == [
        [255] * 3,
        [120] * 3,
    ]
    turned = Image.Exif()
    turned[0x0112] = 3  # orientation and transparency together
    assert first_row(encoded(palette, "PNG", transparency=b"\xff\x00", exif=turned)) == [
        [255, 255, 255],
        [10, 20, 30],
    ]


@pytest.mark.parametrize(
    "cmyk, rgb",
    [((0, 0, 0, 0), (255,) * 3), ((255, 0, 255, 0), (0, 255, 0)), ((0, 0, 0, 255), (0,) * 3)],
)
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(cmyk, rgb, format):
    stored = encoded(Image.new("CMYK", (16, 16), cmyk), format)
    assert pixel(decode(stored)) == pytest.approx(rgb, abs=4)


UPRIGHT = {  # EXIF 2.32, tag 274: how numpy sets each kind upright
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_as_numpy_turns_it(orientation):
    stored, exif = (
        np.repeat(np.repeat(np.array([[20, 90], [160, 230]], np.uint8), 16, 0), 24, 1),
        Image.Exif(),
    )
    exif[0x0112] = orientation
    written = encoded(Image.fromarray(stored), "JPEG", exif=exif, quality=95)
    decoded = decode(written)[0].numpy()
    expected = UPRIGHT[orientation](stored)
    assert (
        decoded.shape == expected.shape
        and np.abs(decoded[::4, ::4].astype(int) - expected[::4, ::4]).max() <= 12
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "WEBP"])
def test_a_truncated_picture_is_refused_not_greyed(format):
    whole = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), format
    )
    assert decode(whole).shape == (3, 64, 64)
    for part in (0.05, 0.5, 0.95):
        with pytest.raises(UserError, match="[Tt]runcated|cannot identify|[Dd]ecod|broken"):
            decode(whole[: int(part * len(whole))])


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 26), (26, MAX_SIDE + 1)])
def test_longer_pictures_shrink_as_they_are_read(tmp_path, size):
    draw(tmp_path / "long.png", size=size)
    draw(tmp_path / "fits.png", size=(MAX_SIDE, 3))
    width, height = size
    expected = (3, min(height, MAX_SIDE), min(width, MAX_SIDE))
    image, digest = read_image(tmp_path / "long.png")
    assert image.shape == expected and pixel(image) == (200, 30, 60)
    assert digest == hashlib.sha256((tmp_path / "long.png").read_bytes()).digest()
    assert read_image(tmp_path / "fits.png")[0].shape == (3, 3, MAX_SIDE)


def test_the_studys_longest_picture_is_read_as_it_is():
    assert MAX_SIDE >= 2592


def test_the_reason_does_not_repeat_the_path(tmp_path):
    """It is listed beside it."""
    (tmp_path / "x.png").write_text("no picture")
    for path in (tmp_path / "x.png", tmp_path / "nothing.png", tmp_path):
        with pytest.raises(UserError) as caught:
            read_image(path)
        assert str(caught.value) and str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)


# ---- the split ---------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[20, 1], [1, 20], [30, 20, 1]])
def test_a_class_too_small_to_split_is_refused(counts):
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    with pytest.raises(DataError, match=f"cannot split {sum(counts)} images.*only 1 member"):
        split_indices(labels, val_size=0.35, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_split_can_be_drawn_with_is_named(seed):
    with pytest.raises(DataError, match=f"cannot split 8 images .*'random_state': {seed}"):
        split_indices(torch.arange(8) % 2, val_size=0.35, seed=seed)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.floats(0.0, 1.0),
    st.integers(0, 2**31),
    st.randoms(),
)
def test_a_split_is_refused_only_where_scikit_learn_has_none(counts, val_size, seed, shuffler):
    labels = [i for i, n in enumerate(counts) for _ in range(n)]
    shuffler.shuffle(labels)
    labels = torch.tensor(labels)
    state = torch.random.get_rng_state()
    options = {"test_size": int(val_size * len(labels)), "random_state": seed}
    try:
        expected = train_test_split(np.arange(len(labels)), stratify=labels.numpy(), **options)
    except ValueError:
        with pytest.raises(DataError, match="cannot split"):
            split_indices(labels, val_size=val_size, seed=seed)
    else:
        parts = split_indices(labels, val_size=val_size, seed=seed)
        assert [part.tolist() for part in parts] == [sorted(part.tolist()) for part in expected]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_that_came_split_stay_so(tmp_path):
    shipped = load_images(make_folder(tmp_path / "shipped", parts=("train", "val")))
    fold = split_images(shipped, seed=0)
    assert fold.train.tolist() == [0, 1, 2, 3, 4, 5] and fold.val.tolist() == [6, 7, 8, 9, 10, 11]
    unsplit = load_images(make_folder(tmp_path / "unsplit", n=5))
    parts = split_indices(unsplit.labels, val_size=0.35, seed=7)
    fold = split_images(unsplit, seed=7)
    assert torch.equal(fold.train, parts[0]) and torch.equal(fold.val, parts[1])


# ---- images beyond memory ----------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 4 * 3 * 9 * 12, 10**9])
def test_a_commands_images_are_a_notebooks(tmp_path, room):
    """Wherever they lie, all else of the set is the same."""
    folder = make_folder(tmp_path / "images", parts=("train", "val"))
    (folder / "val" / "b" / "text.png").write_text("no picture")
    (folder / "SYNTHETIC").write_text("drawn")
    expected = load_images(folder)
    found = load_folder(folder, decoded_bytes=room)
    assert isinstance(expected.images, list) and len(found.images) == len(expected.images) == 12
    assert all(torch.equal(a, b) for a, b in zip(found.images, expected.images, strict=True))
    assert torch.equal(found.labels, expected.labels)
    alike = {"images": (), "labels": None}
    assert vars(replace(found, **alike)) == vars(replace(expected, **alike))
    assert found.rejected and found.synthetic and found.split


def test_what_stays_of_an_image_is_the_callers_choice(tmp_path):
    folder = make_folder(tmp_path / "images")
    kept = load_images(folder, keep=lambda path, image, digest: (path.name, digest)).images
    assert kept[1] == ("1.png", hashlib.sha256((folder / "a" / "1.png").read_bytes()).digest())


def test_images_beyond_the_memory_bound_are_decoded_again(tmp_path):
    folder = make_folder(tmp_path / "images")
    whole = load_images(folder)
    part = load_folder(folder, decoded_bytes=4 * 3 * 9 * 12)  # four of the six images
    kept = [part.images[i] is part.images[i] for i in range(6)]  # the same tensor, or a new one
    assert kept == 4 * [True] + 2 * [False]
    assert len(part.images) == 6 and all(
        torch.equal(a, b) for a, b in zip(whole.images, part.images, strict=True)
    )
    assert part.digest == whole.digest
    draw(folder / "b" / "2.png", (1, 2, 3))
    with pytest.raises(DataError, match="2.png has changed since it was loaded: load the images"):
        part.images[5]
    (folder / "b" / "2.png").unlink()
    with pytest.raises(DataError, match="b/2.png: No such file.*; load the images again"):
        part.images[5]


# ---- errors that speak to the user -------------------------------------------------------------


def test_a_notebook_shows_an_error_in_a_line_or_two(monkeypatch):
    """IPython asks the error for what it prints in place of a traceback."""
    assert UserError("no epochs: give 1")._render_traceback_() == ["error: no epochs: give 1"]
    monkeypatch.setattr(DataError, "remedy", "set data_dir")
    lines = ["set data_dir", "error: no images"]
    assert DataError("no images")._render_traceback_() == lines
    assert DownloadError("no images")._render_traceback_() == lines  # a kind of it
    assert WeightsError("no file")._render_traceback_() == ["error: no file"]  # another kind
    own = WeightsError("no file")
    own.remedy = "run cell 3"
    assert own._render_traceback_() == ["run cell 3", "error: no file"]


def test_every_kind_of_error_is_one_that_the_command_line_prints():
    assert issubclass(DownloadError, DataError)
    for kind in (DataError, WeightsError):
        assert issubclass(kind, UserError) and kind.remedy == ""


def test_ipython_itself_shows_these_lines_alone(tmp_path):
    pytest.importorskip("IPython")
    cell = (
        "from transferlab.errors import DataError as E; E.remedy = 'set it'; raise E('no images')"
    )
    command = [sys.executable, "-m", "IPython", "--quick", "--HistoryManager.enabled=False"]
    environment = os.environ | {"IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, "-c", cell], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.stdout.splitlines() == ["set it", "error: no images"]
    assert "Traceback" not in run.stderr
