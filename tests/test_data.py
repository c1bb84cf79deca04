"""From folders of every kind to an ImageSet: layouts, decoding, what is left out, the split."""

import hashlib
import io
import os
import struct
import zlib
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
    Rejected,
    decode_image,
    find_image_folder,
    load_images,
    split_images,
    split_indices,
)
from transferlab.download import MANGA_FACE_COUNTS
from transferlab.errors import UserError


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


def test_of_several_datasets_the_preferred_one_and_never_the_extra(tmp_path):
    for name in ("manga_facial_expressions", "hymenoptera_data", "manga_facial_expressions_extra"):
        make_folder(tmp_path / name)
    assert find_image_folder(tmp_path, "hymenoptera_data").name == "hymenoptera_data"
    with pytest.raises(UserError, match="several image folders"):
        find_image_folder(tmp_path)
    (tmp_path / "hymenoptera_data").rename(tmp_path / "hymenoptera_extra")
    assert find_image_folder(tmp_path).name == "manga_facial_expressions"


def test_folders_that_cannot_be_used_are_one_clear_error(tmp_path):
    def error(folder):
        with pytest.raises(UserError) as caught:
            load_images(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
        return str(caught.value)

    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert "there is no image folder" in error(tmp_path / "nothing")
    assert "there is no image folder" in error(tmp_path / "file")
    assert "no images" in error(tmp_path / "empty")
    assert "two classes or more" in error(make_folder(tmp_path / "one", classes=("a",)))
    (make_folder(tmp_path / "hole") / "c").mkdir()
    assert "class c: no image can be read" in error(tmp_path / "hole")
    (make_folder(tmp_path / "bad") / "c").mkdir()
    (tmp_path / "bad" / "c" / "x.png").write_text("no picture")
    assert "class c: no image can be read" in error(tmp_path / "bad")
    make_folder(tmp_path / "differ", classes=("a", "b"), parts=("train",))
    make_folder(tmp_path / "differ", classes=("a", "c"), parts=("val",))
    assert "only in train: ['b']; only in val: ['c']" in error(tmp_path / "differ")


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
    assert "truncated" in reasons["a/cut.jpg"] and reasons["a/text.jpg"] == "not an image"
    assert reasons["a/empty.png"] == "empty file"
    assert "placeholder" in reasons["a/imageNotFound.png"]


def test_the_placeholder_is_known_by_its_bytes_too(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    digest = hashlib.sha256((folder / "a" / "1.png").read_bytes()).hexdigest()
    monkeypatch.setattr(data, "PLACEHOLDER_SHA256", digest)
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
        assert pixel(decode_image(encoded(image, format, **options))) == expected, (
            image.mode,
            options,
        )
    cmyk = pixel(
        decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    )
    assert cmyk[0] > 250 and max(cmyk[1:]) < 5
    frames = [Image.new("RGB", (4, 4), "blue"), Image.new("RGB", (4, 4), "red")]
    assert pixel(
        decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    ) == (0, 0, 255)
    with pytest.raises(ValueError, match="range is unknown"):
        decode_image(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    picture = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(4, 9) * 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(picture, "PNG", exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(stored))))
    assert (decode_image(stored)[0].numpy() == expected).all()
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
def test_a_split_is_a_partition_with_every_class_in_both_parts(counts, val_size, seed):
    labels = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)])
    try:
        train, val = split_indices(labels, val_size=val_size, seed=seed)
    except UserError as error:
        assert "every class needs images in both" in str(error)
        return
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels))) and len(val) == int(
        val_size * len(labels)
    )
    assert all(set(labels[part].tolist()) == set(range(len(counts))) for part in (train, val))


def test_real_images():
    root = os.environ.get("TRANSFERLAB_TEST_DATA")
    if not root:
        pytest.skip("TRANSFERLAB_TEST_DATA names no folder of the real images")
    manga = load_images(root, "manga_facial_expressions")
    assert {
        name: manga.labels.tolist().count(i) for i, name in enumerate(manga.classes)
    } == MANGA_FACE_COUNTS
    insects = load_images(root, "hymenoptera_data")
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
    for root, prefer in (
        (tmp_path / "deep", ""),
        (tmp_path / "wide", ""),
        (tmp_path / "wide", "faces_extra"),
    ):
        with pytest.raises(UserError, match="holds no images"):
            find_image_folder(root, prefer)
    assert find_image_folder(extra) == extra  # the user's own word
    draw(tmp_path / "flat" / "0.png")
    with pytest.raises(UserError, match="holds no images"):
        find_image_folder(tmp_path / "flat")


def test_a_class_that_is_bad_in_one_split_only(tmp_path):
    make_folder(tmp_path, parts=("train", "val"))
    for path in (tmp_path / "val" / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="class a: no image can be read in .*val.*empty file"):
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
    reason = 'placeholder by its name ("image not found")'
    assert load_images(tmp_path).rejected == (Rejected(path=f"a/{name}", reason=reason),)


# ---- decoding, pinned to formats written by hand where Pillow cannot save them -----------------


def first_row(stored):
    return decode_image(stored)[:, 0].T.tolist()


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
        with pytest.raises(ValueError, match="range is unknown"):
            decode_image(encoded(Image.fromarray(array), "TIFF"))


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
    assert pixel(decode_image(encoded(Image.new("CMYK", (16, 16), cmyk), format))) == pytest.approx(
        rgb, abs=4
    )


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
    decoded = decode_image(encoded(Image.fromarray(stored), "JPEG", exif=exif, quality=95))[
        0
    ].numpy()
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
    assert decode_image(whole).shape == (3, 64, 64)
    for part in (0.05, 0.5, 0.95):
        with pytest.raises(ValueError, match="cannot be decoded|not an image"):
            decode_image(whole[: int(part * len(whole))])


# ---- the split ---------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[20, 1], [1, 20], [30, 20, 1]])
def test_a_class_too_small_to_split_is_named(counts):
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    classes = [f"class{label}" for label in range(len(counts))]
    with pytest.raises(
        UserError, match=f"cannot split {sum(counts)} images.*class class{counts.index(1)} has 1"
    ):
        split_indices(labels, val_size=0.35, seed=0, classes=classes)


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
    try:
        split_indices(labels, val_size=val_size, seed=seed)
    except UserError:
        try:
            n_val = int(val_size * len(labels))
            parts = train_test_split(
                np.arange(len(labels)), test_size=n_val, stratify=labels.numpy(), random_state=seed
            )
        except ValueError:
            return
        assert any(len(set(labels[part].tolist())) < len(counts) for part in parts)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_beyond_the_memory_bound_are_decoded_again(tmp_path):
    folder = make_folder(tmp_path / "images")
    whole = load_images(folder)
    part = load_images(folder, decoded_bytes=4 * 3 * 9 * 12)  # four of the six images
    kept = [part.images[i] is part.images[i] for i in range(6)]  # the same tensor, or a new one
    assert kept == 4 * [True] + 2 * [False]
    assert len(part.images) == 6 and all(
        torch.equal(a, b) for a, b in zip(whole.images, part.images, strict=True)
    )
    assert part.digest == whole.digest
    draw(folder / "b" / "2.png", (1, 2, 3))
    with pytest.raises(UserError, match="2.png has changed since it was loaded"):
        part.images[5]
