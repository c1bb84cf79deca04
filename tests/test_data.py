"""From folders of every kind to an ImageSet: layouts, decoding, what is left out, the split."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split

from transferlab import data
from transferlab.data import decode_image, find_image_folder, load_images, split_images, split_indices
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
    assert images.classes == ["a", "b"] and len(images.images) == 6 * len(parts)
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
    reasons = dict(images.rejected)
    expected = {f"a/{n}" for n in ("cut.jpg", "empty.png", "text.jpg", "inner", "imageNotFound.png")}
    assert len(images.images) == 6 and set(reasons) == expected
    assert "truncated" in reasons["a/cut.jpg"] and reasons["a/empty.png"] == "empty file" and reasons["a/text.jpg"] == "not an image"
    assert "placeholder" in reasons["a/imageNotFound.png"]


def test_the_placeholder_is_known_by_its_bytes_too(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    digest = hashlib.sha256((folder / "a" / "1.png").read_bytes()).hexdigest()
    monkeypatch.setattr(data, "PLACEHOLDER_SHA256", digest)
    assert [path for path, _ in load_images(folder).rejected] == ["a/1.png", "b/1.png"]


def test_every_mode_gets_its_right_colours():
    red, grey = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("L", (4, 4), 90)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    deep = Image.fromarray(np.full((4, 4), 32896, np.uint16))
    for image, format, options, expected in (
        (red, "PNG", {}, (255, 0, 0)), (grey, "PNG", {}, (90, 90, 90)), (Image.new("1", (4, 4), 1), "PNG", {}, (255, 255, 255)),
        (clear, "PNG", {}, (255, 255, 255)), (half, "PNG", {}, (255, 127, 127)),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", {}, (255, 255, 255)), (palette, "PNG", {}, (0, 255, 0)),
        (palette, "PNG", {"transparency": 1}, (255, 255, 255)), (grey, "PNG", {"transparency": 90}, (255, 255, 255)),
        (deep, "PNG", {}, (128, 128, 128)), (deep, "TIFF", {}, (128, 128, 128)),
    ):
        assert pixel(decode_image(encoded(image, format, **options))) == expected, (image.mode, options)
    cmyk = pixel(decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)))
    assert cmyk[0] > 250 and max(cmyk[1:]) < 5
    frames = [Image.new("RGB", (4, 4), "blue"), Image.new("RGB", (4, 4), "red")]
    assert pixel(decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))) == (0, 0, 255)
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
    one, two = load_images(make_folder(tmp_path / "one")), load_images(make_folder(tmp_path / "two"))
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
    expected = train_test_split(np.arange(455), test_size=159, stratify=labels.numpy(), random_state=42)
    assert [train.tolist(), val.tolist()] == [sorted(part.tolist()) for part in expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.floats(0.05, 0.6), st.integers(0, 99))
def test_a_split_is_a_partition_with_every_class_in_both_parts(counts, val_size, seed):
    labels = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)])
    try:
        train, val = split_indices(labels, val_size=val_size, seed=seed)
    except UserError as error:
        assert "every class needs images in both" in str(error)
        return
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels))) and len(val) == int(val_size * len(labels))
    assert all(set(labels[part].tolist()) == set(range(len(counts))) for part in (train, val))


def test_real_images():
    root = os.environ.get("TRANSFERLAB_TEST_DATA")
    if not root:
        pytest.skip("TRANSFERLAB_TEST_DATA names no folder of the real images")
    manga = load_images(root, "manga_facial_expressions")
    assert {name: manga.labels.tolist().count(i) for i, name in enumerate(manga.classes)} == MANGA_FACE_COUNTS
    insects = load_images(root, "hymenoptera_data")
    assert [len(part) for part in split_images(insects, val_size=0.35, seed=0)] == [244, 153]
    assert [Path(path).name for path, _ in insects.rejected] == ["imageNotFound.gif"]
