"""From folders as people have them to a layout: what is understood, what is said, what refused."""

import os
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferlab.data import find_layout, load_images
from transferlab.errors import DataError

CAT = unicodedata.normalize("NFC", "고양이")


def fill(folder, count=3, first=0):
    """Draws so many small pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        colour = (10 * number % 256, 90, 40)
        Image.new("RGB", (8, 6), colour).save(folder / f"{number}.png")


def build(root, **counts):
    """Folders by their path, with "__" for "/", each with so many pictures."""
    for name, count in counts.items():
        fill(root / name.replace("__", "/"), count)
    return root


def counted(folder, **options):
    """{class: images} of what is read."""
    images = load_images(folder, **options)
    return Counter(images.classes[label] for label in images.labels.tolist())


def refusal(folder):
    """The one line that a folder is refused with."""
    with pytest.raises(DataError) as caught:
        load_images(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- splits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("train", "valid", "test"),
        ("Train", "Validation", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "VAL", "TEST"),
        ("train", "dev", "test"),
        ("training_set", "val_set", "test_set"),
        ("seg_train", "seg_val", "seg_test"),
        ("train-images", "val-images", "test-images"),
        ("1.Training", "2.Validation", "3.Test"),
        ("학습", "검증", "시험"),
        ("train_dataset", "valid_dataset", "test_dataset"),
    ],
)
def test_splits_as_people_call_them(tmp_path, train, val, test):
    for part, count in ((train, 4), (val, 2), (test, 1)):
        build(tmp_path / part, a=count, b=count)
    layout = find_layout(tmp_path)
    assert [*layout.parts] == ["train", "val", "test"] and layout.classes == ("a", "b")
    images = load_images(tmp_path)
    assert Counter(images.split) == {"train": 8, "val": 4}
    assert images.notes == ("test: 2 files are kept apart",)
    apart = load_images(tmp_path, parts=("test",))
    assert apart.split == ("test", "test") and apart.labels.tolist() == [0, 1]
    assert apart.notes == ()
    everything = load_images(tmp_path, parts=("train", "val", "test"))
    assert Counter(everything.split) == {"train": 8, "val": 4, "test": 2}


def test_without_a_val_the_training_images_come_unsplit(tmp_path):
    build(tmp_path, train__a=4, train__b=4, test__a=2, test__b=1)
    images = load_images(tmp_path)
    assert images.split is None and len(images.labels) == 8
    assert images.paths[0] == "train/a/0.png" and "3 files are kept apart" in images.notes[0]
    both = load_images(tmp_path, parts=("train", "val", "test"))
    assert Counter(both.split) == {"train": 8, "test": 3}
    with pytest.raises(DataError, match="has no part val"):
        load_images(tmp_path, parts=("val",))


def test_a_split_in_a_folder_of_its_own_name(tmp_path):
    """As some archives are packed twice."""
    build(tmp_path, seg_train__seg_train__a=2, seg_train__seg_train__b=2)
    build(tmp_path, seg_test__seg_test__a=1, seg_test__seg_test__b=1, seg_pred__seg_pred=5)
    assert [*find_layout(tmp_path).parts] == ["", "test"]
    assert "beside its parts, not read: seg_pred" in " ".join(load_images(tmp_path).notes)


def test_a_test_split_may_lack_a_class_and_no_other_may(tmp_path):
    build(tmp_path, train__a=2, train__b=2, train__c=2, test__a=1, test__c=2)
    apart = load_images(tmp_path, parts=("test",))
    assert apart.classes == ("a", "b", "c") and apart.labels.tolist() == [0, 2, 2]
    build(tmp_path, test__d=1)
    assert "not in both train and test: d" in refusal(tmp_path)
    build(tmp_path / "other", train__a=2, train__b=2, val__a=1, val__c=2)
    assert "not in both train and val: b, c" in refusal(tmp_path / "other")


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "test"),
        ("Train", "valid"),
        ("train", "val", "test"),
        ("train", "test1"),
        ("train_images", "test_images"),
        ("train", "to_predict"),
        ("trainA", "testA", "trainB", "testB"),
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("train_resized", "test_resized"),
        ("1.Training", "2.Validation"),
        ("학습", "검증"),
        ("rps-train", "rps-test-set"),
    ],
)
def test_splits_that_hold_pictures_are_refused(tmp_path, parts):
    for part in parts:
        fill(tmp_path / part, 4)
    (tmp_path / "labels.csv").write_text("id,label\n0,cat\n")
    message = refusal(tmp_path)
    assert "holds pictures, not several classes" in message and "no table of labels" in message
    assert all(part in message for part in parts)


def test_parts_without_one_to_train_on_are_no_classes(tmp_path):
    build(tmp_path, val=3, test=3)
    assert "test, val are called like parts of one set" in refusal(tmp_path)
    build(tmp_path / "lab", blood_test=3, urine_test=3)
    assert counted(tmp_path / "lab") == {"blood_test": 3, "urine_test": 3}


def test_a_test_split_of_one_class_is_one(tmp_path):
    build(tmp_path, train__cat=3, train__dog=3, test__cat=2)
    assert load_images(tmp_path, parts=("test",)).labels.tolist() == [0, 0]


def test_a_val_that_lacks_a_class_is_told_so(tmp_path):
    build(tmp_path, train__cat=3, train__dog=3, val__cat=2)
    assert "not in both train and val: dog" in refusal(tmp_path)


@pytest.mark.parametrize("inner", ["test", "train", "validation"])
def test_a_split_inside_a_class_is_refused(tmp_path, inner):
    build(tmp_path, cat=3, dog=3)
    fill(tmp_path / "cat" / inner)
    assert f"cat holds the folders {inner}: if it is a class" in refusal(tmp_path)


def test_train_with_classes_beside_a_flat_test(tmp_path):
    build(tmp_path, train__a=3, train__b=3, test=5)
    images = load_images(tmp_path)
    assert counted(tmp_path) == {"a": 3, "b": 3} and images.split is None
    assert images.notes == ("test: 5 pictures without classes are not read",)


def test_a_flat_train_beside_a_test_with_classes_is_refused(tmp_path):
    build(tmp_path, train=5, test__a=3, test__b=3)
    assert "holds pictures, not several classes" in refusal(tmp_path)


def test_two_folders_for_one_part_are_refused(tmp_path):
    build(tmp_path, train__a=2, train__b=2, training__a=2, training__b=2, val__a=1, val__b=1)
    assert "train, training, each for train: keep one of them" in refusal(tmp_path)


def test_a_class_may_be_called_as_a_part(tmp_path):
    build(tmp_path, bus=3, car=3, train=3)
    assert counted(tmp_path) == {"bus": 3, "car": 3, "train": 3}
    build(tmp_path / "lab", blank=2, test=4)
    assert counted(tmp_path / "lab") == {"blank": 2, "test": 4}


def test_what_lies_beside_the_parts_is_named(tmp_path):
    build(tmp_path, train__a=2, train__b=2, val__a=1, val__b=1, samples=3, unlabelled__x=2)
    (tmp_path / "notes").mkdir()
    fill(tmp_path, 2)
    assert load_images(tmp_path).notes == (
        f"{tmp_path.name}: beside its parts, not read: samples, unlabelled, notes, 2 pictures",
    )


# ---- classes -----------------------------------------------------------------------------------


def test_sub_folders_of_a_class_are_read(tmp_path):
    build(tmp_path, a=3, a__camera2=2, a__camera2__late=1, b=4)
    assert counted(tmp_path) == {"a": 6, "b": 4}
    images = load_images(tmp_path)
    assert images.paths[3] == "a/camera2/0.png" and images.files[3] == tmp_path / images.paths[3]
    assert "3 pictures in sub-folders of classes are read too" in images.notes[0]
    build(tmp_path / "split", train__a=3, train__a__more=2, train__b=2, val__a=1, val__b=1)
    assert counted(tmp_path / "split") == {"a": 6, "b": 3}


def test_classes_whose_pictures_lie_one_folder_deeper(tmp_path):
    build(tmp_path, a__images=3, b__images=2)
    assert counted(tmp_path) == {"a": 3, "b": 2}


@pytest.mark.parametrize("masks", ["masks", "Mask", "labels", "ground_truth", "lung_masks"])
def test_masks_are_no_pictures_of_a_class(tmp_path, masks):
    for name in ("a", "b"):
        fill(tmp_path / name / "images", 3)
        fill(tmp_path / name / masks, 3)
    assert counted(tmp_path) == {"a": 3, "b": 3}
    assert "6 masks or labels of pictures are not read" in load_images(tmp_path).notes[1]
    build(tmp_path / "loose", a=2, b=2)
    fill(tmp_path / "loose" / ".ipynb_checkpoints", 2)
    fill(tmp_path / "loose/a" / masks, 2)
    assert counted(tmp_path / "loose") == {"a": 2, "b": 2}


def test_pictures_and_their_masks_are_no_classes(tmp_path):
    build(tmp_path, images=3, masks=3)
    assert "images, masks are called like pictures and masks, no classes" in refusal(tmp_path)
    build(tmp_path / "split", train__img=3, train__ground_truth=3, val__img=2, val__ground_truth=2)
    assert "called like pictures and masks" in refusal(tmp_path / "split")


@pytest.mark.parametrize(
    "names",
    [
        ("JPEGImages", "SegmentationClass", "SegmentationObject"),
        ("PNGImages", "PedMasks"),
        ("original_images", "label_images_semantic"),
        ("rgb", "depth"),
        ("HAM10000_images_part_1", "HAM10000_images_part_2"),
        ("images_001", "images_002", "images_003"),
        ("part1", "part2"),
        ("batch1", "batch2"),
        ("images", "images_2"),
        ("fold1", "fold2", "fold3"),
    ],
)
def test_parts_of_one_set_are_no_classes(tmp_path, names):
    for name in names:
        fill(tmp_path / name)
    assert "are called like" in refusal(tmp_path)


@pytest.mark.parametrize("mask", ["{}_mask", "{}_mask_1", "{}_segmentation", "{}-label"])
def test_masks_beside_their_pictures_are_not_read(tmp_path, mask):
    for name in ("benign", "malignant"):
        fill(tmp_path / name)
        for number in range(3):
            Image.new("1", (8, 6)).save(tmp_path / name / f"{mask.format(number)}.png")
    assert counted(tmp_path) == {"benign": 3, "malignant": 3}
    assert "6 masks or labels of pictures are not read" in load_images(tmp_path).notes[0]


def test_classes_called_like_masks_are_read_in_splits_too(tmp_path):
    build(tmp_path, train__mask=3, train__helmet=3, val__mask=2, val__helmet=2)
    assert counted(tmp_path) == {"helmet": 5, "mask": 5}
    build(tmp_path / "x", train__with_mask=3, train__no_mask=3, val__with_mask=2, val__no_mask=2)
    assert counted(tmp_path / "x") == {"no_mask": 5, "with_mask": 5}


def test_a_class_called_like_masks_among_others_is_pointed_out(tmp_path):
    build(tmp_path, good=3, broken=3, ground_truth=3)
    assert "1 classes are called like masks: ground_truth" in load_images(tmp_path).notes[0]


def test_a_class_of_masks_is_a_class(tmp_path):
    build(tmp_path, mask=3, no_mask=2)
    assert counted(tmp_path) == {"mask": 3, "no_mask": 2}


@pytest.mark.parametrize("inner", ["copy", "a", "a__deep"])
def test_a_copy_of_the_folder_inside_itself_is_refused(tmp_path, inner):
    build(tmp_path, a=3, b=3)
    build(tmp_path / inner.replace("__", "/"), a=3, b=3)
    message = refusal(tmp_path)
    assert "holds the folders" in message and "move it away" in message


def test_folders_that_may_be_classes_or_datasets_are_refused(tmp_path):
    build(tmp_path, amazon__mug=3, amazon__bike=3, webcam__mug=3, webcam__bike=3)
    assert "several image folders" in refusal(tmp_path)
    build(tmp_path / "mixed", a=3, b=3, c__x=2, c__y=2)
    assert "c holds the folders x, y: if it is a class" in refusal(tmp_path / "mixed")


def test_loose_pictures_alone_are_counted(tmp_path):
    for name in ("cat.0", "cat.1", "dog.0"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.png")
    assert "holds 3 images, but no two folders CLASS/*" in refusal(tmp_path)
    build(tmp_path / "one", a=4)
    assert "holds 4 images" in refusal(tmp_path / "one")


def test_what_lies_beside_the_classes_is_named(tmp_path):
    build(tmp_path, a=2, b=2)
    fill(tmp_path, 4)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("words")
    first, second = load_images(tmp_path).notes
    assert "4 pictures beside the classes are not read" in first
    assert "1 without pictures, or read already, are not read: notes" in second


@pytest.mark.parametrize("name", ["__background__", "_unknown_", "__none"])
def test_underscores_make_no_class_vanish(tmp_path, name):
    build(tmp_path, a=2, b=2)
    fill(tmp_path / name, 3)
    fill(tmp_path / "__MACOSX" / "a", 3)
    assert counted(tmp_path) == {"a": 2, "b": 2, name: 3}


# ---- names -------------------------------------------------------------------------------------


def test_a_name_composed_and_decomposed_is_one_class(tmp_path):
    for form, first in (("NFC", 0), ("NFD", 10)):
        fill(tmp_path / unicodedata.normalize(form, CAT), 3, first)
    fill(tmp_path / "dog")
    if len([*tmp_path.iterdir()]) < 3:
        pytest.skip("this file system knows one form alone")
    assert counted(tmp_path) == {CAT: 6, "dog": 3}
    assert f"read as one class: {CAT}" in load_images(tmp_path).notes[0]


def test_parts_may_spell_a_class_differently(tmp_path):
    for part, form in (("train", "NFD"), ("val", "NFC")):
        fill(tmp_path / part / unicodedata.normalize(form, CAT))
        fill(tmp_path / part / "dog")
    assert counted(tmp_path) == {CAT: 6, "dog": 6}


@pytest.mark.parametrize(
    "other", ["Cat", "CAT", "cat ", " cat", "cat - Copy", "cat (2)", "cat - 복사본", "cat copy"]
)
def test_classes_that_may_be_one_are_pointed_out(tmp_path, other):
    for name in ("cat", other, "dog"):
        fill(tmp_path / name)
    if len([*tmp_path.iterdir()]) < 3:
        pytest.skip("this file system takes them for one")
    assert len(load_images(tmp_path).classes) == 3
    assert "classes that may be one, by their names" in load_images(tmp_path).notes[-1]


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\tb", "\u202eab"])
def test_names_that_a_terminal_obeys_are_spelt_out(tmp_path, name):
    fill(tmp_path / name)
    fill(tmp_path / "dog")
    (tmp_path / name / f"{name}.png").write_bytes(b"no picture")
    images = load_images(tmp_path)
    shown = [*images.classes, *images.paths, images.rejected[0].path]
    assert all(one.isprintable() for one in shown)
    assert counted(tmp_path)[images.classes[1 - images.classes.index("dog")]] == 3


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    names=st.sets(NAMES, min_size=2, max_size=4),
    nested=st.booleans(),
    parts=st.sampled_from([("",), ("train", "val"), ("Train", "valid", "test")]),
)
def test_every_name_is_read_or_refused_in_one_line(tmp_path_factory, names, nested, parts):
    """Whatever folders are called, each picture is read or said not to be."""
    root = tmp_path_factory.mktemp("names")
    made = 0
    for part in parts:
        for name in names:
            if name in (".", "..") or len(os.fsencode(name)) > 200:
                continue
            try:
                fill(root / ("outer" if nested else "") / part / name, 2)
            except OSError:  # a name that this file system does not take
                continue
            made += 2 * (part != "test")
    try:
        images = load_images(root)
    except DataError as error:
        assert "\n" not in str(error)
        return
    hidden = sum(2 for part in parts for name in names if name.startswith("."))
    assert made - hidden <= len(images.labels) + 2 * len(parts) * len(images.notes)
    assert all(one.isprintable() for one in (*images.paths, *images.classes, *images.notes))


# ---- search ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", ["", "x", "x/y"])
def test_an_image_folder_is_found_two_folders_deep(tmp_path, nested):
    folder = build(tmp_path / nested, a=2, b=2)
    (folder / "README.txt").write_text("words")
    assert find_layout(tmp_path).folder == folder


def test_deeper_is_not_searched(tmp_path):
    build(tmp_path / "x" / "y" / "z", a=2, b=2)
    assert "holds 4 images" in refusal(tmp_path)


def test_of_several_datasets_the_one_that_is_asked_for_and_never_the_extra(tmp_path):
    for name in ("manga_facial_expressions", "hymenoptera_data", "manga_facial_expressions_extra"):
        build(tmp_path / name, a=2, b=2)
    assert find_layout(tmp_path, "hymenoptera_data").folder.name == "hymenoptera_data"
    with pytest.raises(DataError, match="several image folders: .*hymenoptera_data.*name one"):
        find_layout(tmp_path)
    (tmp_path / "hymenoptera_data").rename(tmp_path / "hymenoptera_extra")
    assert find_layout(tmp_path, "hymenoptera_data").folder.name == "manga_facial_expressions"
    assert find_layout(tmp_path / "hymenoptera_extra").classes == ("a", "b")  # the user's word


def test_the_folder_that_is_asked_for_wins_though_it_lies_deeper(tmp_path):
    faces = build(tmp_path / "faces", a=2, b=2)
    insects = build(tmp_path / "x" / "insects", train__a=2, train__b=2, val__a=1, val__b=1)
    assert find_layout(tmp_path, "insects").folder == insects
    for name in ("faces", "buttons", ""):  # what is nowhere is as nothing: the nearest
        assert find_layout(tmp_path, name).folder == faces
    nearer = build(tmp_path / "insects", a=2, b=2)
    assert find_layout(tmp_path, "insects").folder == nearer


def test_two_folders_of_the_name_that_is_asked_for_are_one_too_many(tmp_path):
    for outer in ("x", "y"):
        build(tmp_path / outer / "insects", a=2, b=2)
    with pytest.raises(DataError, match="several .*x/insects.*y/insects.*name one"):
        find_layout(tmp_path, "insects")


def test_a_folder_of_notes_beside_the_datasets_is_no_class(tmp_path):
    insects = build(tmp_path / "insects", a=2, b=2)
    build(tmp_path / "faces", a=2, b=2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("words")
    assert find_layout(tmp_path, "insects").folder == insects
    with pytest.raises(DataError, match="several image folders"):
        find_layout(tmp_path)


def test_links_in_a_circle_do_not_hold_the_search_up(tmp_path):
    build(tmp_path, a=2, b=2)
    for name in ("a", "b"):
        (tmp_path / name / "up").symlink_to("..")
        (tmp_path / name / "self").symlink_to(".")
    assert counted(tmp_path) == {"a": 2, "b": 2}


def test_what_several_links_lead_to_is_read_once(tmp_path):
    build(tmp_path, a=2, b=2, c=2)
    for one in "abc":
        for other in set("abc") - {one}:
            (tmp_path / one / other).symlink_to(f"../{other}")
    (tmp_path / "d").symlink_to("a")
    (tmp_path / "e").symlink_to("nowhere")
    layout = find_layout(tmp_path)
    assert sum(map(len, layout.parts[""].values())) == 6
    assert "d, e" in " ".join(layout.notes)


@pytest.mark.parametrize("suffix", ["jpe", "jfif", "JPG_large", "", "dat"])
def test_pictures_count_by_what_they_are(tmp_path, suffix):
    for name in ("a", "a/more", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            path = tmp_path / name / (f"{number}.{suffix}" if suffix else str(number))
            Image.new("RGB", (8, 6)).save(path, "JPEG")
    assert counted(tmp_path) == {"a": 6, "b": 3}


def test_pictures_elsewhere_are_counted(tmp_path):
    build(tmp_path, bird__images__a=3, bird__images__b=3, segmentations__a=3, segmentations__b=3)
    assert find_layout(tmp_path).folder == tmp_path / "bird/images"
    assert "6 pictures elsewhere are not read" in find_layout(tmp_path).notes[-1]


def test_thousands_of_classes_are_listed_in_seconds(tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 6)).save(picture)
    for number in range(3000):
        folder = tmp_path / "images" / f"c{number}"
        folder.mkdir(parents=True)
        os.link(picture, folder / "0.png")
    started = time.perf_counter()
    assert len(find_layout(tmp_path / "images").classes) == 3000
    assert time.perf_counter() - started < 5


def test_linked_folders_are_read(tmp_path):
    fill(tmp_path / "elsewhere")
    build(tmp_path / "images", a=2)
    (tmp_path / "images" / "b").symlink_to(tmp_path / "elsewhere")
    assert counted(tmp_path / "images") == {"a": 2, "b": 3}


@pytest.mark.parametrize("name", ["nothing", "file", "~nobody-of-this-name/x", "x" * 300, "a\0b"])
def test_what_is_no_folder_is_said_in_one_line(tmp_path, name):
    (tmp_path / "file").write_text("x")
    place = name if name.startswith("~") else f"{tmp_path}/{name}"
    assert "cannot be read as a folder" in refusal(place)


def test_a_folder_that_may_not_be_read_is_said_in_one_line(tmp_path, monkeypatch):
    def denied(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", denied)
    assert "Permission denied" in refusal(tmp_path)
