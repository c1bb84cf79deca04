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
    MAX_RATIO,
    MAX_SIDE,
    Rejected,
    find_layout,
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


def test_folders_that_cannot_be_used_are_one_clear_error(tmp_path):
    def error(folder):
        with pytest.raises(DataError) as caught:
            load_images(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "holds 0 images, but no two folders CLASS/*" in error(tmp_path / "empty")
    (make_folder(tmp_path / "bad") / "c").mkdir()
    (tmp_path / "bad" / "c" / "x.png").write_text("no picture")
    bad = error(tmp_path / "bad")
    assert "bad/c: no image can be read" in bad
    assert "c/x.png" in bad and "cannot identify image file" in bad


def test_what_is_left_out_is_listed_with_its_reason(tmp_path):
    folder = make_folder(tmp_path / "images") / "a"
    whole = encoded(Image.effect_noise((60, 60), 90), "JPEG")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    draw(folder / "imageNotFound.png")
    os.mkfifo(folder / "pipe.png")
    images = load_images(tmp_path / "images")
    reasons = {one.path: one.reason for one in images.rejected}
    named = ("cut.jpg", "empty.png", "text.jpg", "imageNotFound.png", "pipe.png")
    assert len(images.images) == 6 and set(reasons) == {f"a/{name}" for name in named}
    assert "truncated" in reasons["a/cut.jpg"]
    for name in ("a/text.jpg", "a/empty.png"):
        assert reasons[name] == "cannot identify image file 'it'"
    assert reasons["a/pipe.png"] == "no regular file"
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


def test_real_images():
    root = os.environ.get("TRANSFERLAB_TEST_DATA")
    if not root:
        pytest.skip("TRANSFERLAB_TEST_DATA names no folder of the real images")
    manga = load_images(find_layout(root, "manga_facial_expressions").folder)
    assert {
        name: manga.labels.tolist().count(i) for i, name in enumerate(manga.classes)
    } == MANGA_FACE_COUNTS
    insects = load_images(find_layout(root, "hymenoptera_data").folder)
    fold = split_images(insects, val_size=0.35, seed=0)
    assert [len(part) for part in (fold.train, fold.val)] == [244, 153]
    assert [Path(one.path).name for one in insects.rejected] == ["imageNotFound.gif"]


def test_a_class_that_is_bad_in_one_split_only(tmp_path):
    make_folder(tmp_path, parts=("train", "val"))
    for path in (tmp_path / "val" / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match="val/a: no image can be read: .*cannot identify.*; add some"
    ):
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
    assert [one.path for one in before.rejected] == ["a/link.png"]
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


def grey_folder(root, tops, suffix="png"):
    """Two classes of 16-bit files, a row from black to each of `tops`."""
    for name in ("a", "b"):
        for number, top in enumerate(tops):
            path = root / name / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array([[0, top // 2, top]], np.uint16)).save(path)
    return root


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize(
    "top, white", [(200, 255), (900, 1023), (3900, 4095), (16000, 16383), (60000, 65535)]
)
def test_one_depth_for_a_folder_from_what_it_uses(tmp_path, suffix, top, white):
    """Scanners write 10, 12 or 14 bits into files of 16, and do not say so."""
    images = load_images(grey_folder(tmp_path, (top // 3, top), suffix))
    dark, bright = images.images[:2]
    assert abs(bright[0, 0, 2] - 255 * top / white) <= 0.5
    assert abs(dark[0, 0, 2] - 255 * (top // 3) / white) <= 0.5  # in the same scale
    assert set(images.white.values()) == {white}
    assert images.notes == (f"16-bit files: 0 to {top}, so {white} is white",)


def test_the_depth_of_png_and_tiff_is_one(tmp_path):
    grey_folder(tmp_path, (4000,), "png")
    grey_folder(tmp_path, (1000,), "tif")
    images = load_images(tmp_path)
    assert [int(one[0, 0, 2]) for one in images.images] == [249, 62, 249, 62]


def test_a_pgm_file_that_says_its_depth_is_taken_at_its_word(tmp_path):
    grey_folder(tmp_path, (4000,), "png")
    row = np.array([0, 2048, 4095], ">u2").tobytes()
    for name in ("a", "b"):
        (tmp_path / name / "said.pgm").write_bytes(b"P5\n3 1\n4095\n" + row)
    images = load_images(tmp_path)
    assert images.images[1][0, 0].tolist() == [0, 128, 255]
    assert images.white == {"other": 4095, "PPM": 65535}


def test_a_few_bright_pixels_do_not_set_the_depth(tmp_path):
    for name in ("a", "b"):
        pixels = np.full((64, 64), 2000, np.uint16)
        pixels[0, :2] = 65535
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "hot.png")
    images = load_images(tmp_path)
    assert images.white == {"other": 4095} and images.images[0][0, 0, :3].tolist() == [
        255,
        255,
        125,
    ]


def test_a_range_of_which_little_is_used_is_pointed_out(tmp_path):
    for name in ("a", "b"):
        pixels = np.linspace(21000, 24000, 256).reshape(16, 16).astype(np.uint16)
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "warm.tif")
    (note,) = load_images(tmp_path).notes
    assert note.startswith("16-bit files: 21") and "which leaves 11 of 256 levels" in note


def png16(path, colour):
    """Writes a PNG file of 16-bit colours, which Pillow cannot."""
    row = struct.pack(">3H", *colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(1, 16, 2, row))


def test_colours_of_16_bits_are_said_to_be_cut(tmp_path):
    for name in ("a", "b"):
        png16(tmp_path / name / "deep.png", (4095, 4095, 4095))
    images = load_images(tmp_path)
    assert "2 files have 16-bit colours, of which the upper 8 bits are read" in images.notes


def test_pages_beyond_the_first_are_said_not_to_be_read(tmp_path):
    page = Image.new("RGB", (8, 8))
    make_folder(tmp_path)
    page.save(tmp_path / "a" / "pages.tif", save_all=True, append_images=[page, page])
    assert "1 files have several pages, the first is read" in load_images(tmp_path).notes


def test_an_alpha_that_was_left_empty_is_no_transparency():
    empty = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    assert pixel(decode(encoded(empty, "TGA"))) == (10, 20, 30)


def test_what_is_no_picture_is_not_read_whole(tmp_path, monkeypatch):
    with open(tmp_path / "clip.mov", "wb") as file:
        file.truncate(2**40)  # of which the disk holds nothing
    with pytest.raises(UserError, match="cannot identify"):
        read_image(tmp_path / "clip.mov")


def test_a_file_that_is_not_read_does_not_set_the_depth(tmp_path):
    grey_folder(tmp_path, (1000, 4000))
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a" / "deep.tif")
    images = load_images(tmp_path)
    assert images.white == {"other": 4095} and len(images.rejected) == 1


def test_the_digest_follows_the_depth(tmp_path):
    """The same test files are other pixels when the training images reach further."""
    grey_folder(tmp_path / "train", (1000,))
    grey_folder(tmp_path / "test", (900,))
    before = load_images(tmp_path, parts=("test",))
    grey_folder(tmp_path / "train", (1000, 4000))
    after = load_images(tmp_path, parts=("test",))
    assert before.images[0].max() > after.images[0].max() and before.digest != after.digest


def test_images_beyond_memory_keep_their_depth(tmp_path):
    grey_folder(tmp_path, (1000, 4000))
    alike = zip(load_folder(tmp_path, decoded_bytes=0).images, load_images(tmp_path).images)
    assert all(torch.equal(one, other) for one, other in alike)


def test_a_band_beyond_three_is_no_transparency(tmp_path):
    """Near infrared as the fourth band of a TIFF file, whether it is called alpha or not."""
    colours = np.full((20, 20, 4), (10, 20, 30, 0), np.uint8)
    colours[..., 3] = np.arange(400).reshape(20, 20) % 200 + 20
    for name in ("a", "b"):
        path = tmp_path / name / "infrared.tif"
        path.parent.mkdir()
        Image.fromarray(colours).save(path)
    images = load_images(tmp_path)
    assert pixel(images.images[0]) == (10, 20, 30)
    assert images.notes == ("2 files have a fourth band, not read",)


def test_transparency_in_a_tiff_is_still_that(tmp_path):
    clear = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    clear.paste((10, 20, 30, 255), (5, 5, 15, 15))
    assert pixel(decode(encoded(clear, "TIFF"))) == (255, 255, 255)


def test_heic_is_read_where_its_package_is(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    path = tmp_path / "photo.HEIC"
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 90, 30))).save(path)
    assert read_image(path)[0].shape == (3, 48, 64)
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot identify.*: pip install pillow-heif"):
        read_image(path)


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("a.jxl", "save as PNG"),
        ("a.svg", "save as PNG"),
        ("a.HEIF", "pip install pillow-heif"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_remedy(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"\xff\x0a" + b"@" * 100)
    with pytest.raises(UserError, match=f": .*{remedy}"):
        read_image(tmp_path / name)


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
    draw(tmp_path / "fits.png", size=(MAX_SIDE, 30))
    width, height = size
    expected = (3, min(height, MAX_SIDE), min(width, MAX_SIDE))
    image, digest = read_image(tmp_path / "long.png")
    assert image.shape == expected and pixel(image) == (200, 30, 60)
    assert digest == hashlib.sha256((tmp_path / "long.png").read_bytes()).digest()
    assert read_image(tmp_path / "fits.png")[0].shape == (3, 30, MAX_SIDE)


@pytest.mark.parametrize("size", [(12_000, 2), (2, 12_000), (500, 1)])
def test_a_strip_is_widened(tmp_path, size):
    """Resized as it is, so that its short side has 256 pixels, it would fill the memory."""
    draw(tmp_path / "strip.png", size=size)
    sides = sorted(read_image(tmp_path / "strip.png")[0].shape[1:])
    assert sides[1] == min(max(size), MAX_SIDE) and sides[0] == sides[1] // MAX_RATIO


def test_more_pixels_than_memory_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_PIXELS", 3_000_000)
    draw(tmp_path / "scan.png", size=(2001, 1500))
    with pytest.raises(UserError, match="2001 x 1500 pixels: make it smaller"):
        read_image(tmp_path / "scan.png")
    draw(tmp_path / "photo.jpg", size=(6000, 5400))  # of which a quarter is decoded
    monkeypatch.setattr(data, "MAX_PIXELS", 9_000_000)
    assert read_image(tmp_path / "photo.jpg")[0].shape == (3, 2340, MAX_SIDE)


def test_a_large_scan_is_read_without_pillows_warning(tmp_path, recwarn):
    path = tmp_path / "scan.png"
    Image.new("1", (10_000, 9_500)).save(path)
    assert read_image(path)[0].shape == (3, 2470, MAX_SIDE) and not recwarn.list


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


def test_test_images_are_in_neither_part_of_a_split(tmp_path):
    images = load_images(
        make_folder(tmp_path, parts=("train", "val", "test")), parts=("train", "val", "test")
    )
    fold = split_images(images, seed=0)
    assert fold.train.tolist() == [0, 1, 2, 3, 4, 5] and fold.val.tolist() == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_too_small_for_a_split_is_called_by_its_name(tmp_path, count):
    make_folder(tmp_path, n=9)
    make_folder(tmp_path, classes=("rare",), n=count)
    message = f"a class needs 3 images, rare has {count}: add some, or remove the class"
    with pytest.raises(DataError, match=message):
        split_images(load_images(tmp_path), seed=0)
    make_folder(tmp_path, classes=("rare",), n=3)
    images = load_images(tmp_path)
    fold = split_images(images, seed=0)
    for part in (fold.train, fold.val):
        assert set(images.labels[part].tolist()) == {0, 1, 2}
