"""Datasets: one entry each, with its augmentation; what an augmentation states is what it draws."""

from dataclasses import replace

import pytest
from torchvision.transforms import v2

from transferlab.__main__ import main
from transferlab.commands.compare import chosen_augmentation
from transferlab.datasets import (
    DATASETS,
    FACES,
    INSECTS,
    Dataset,
    augmentation_for,
    augmentation_named,
    known_augmentations,
)
from transferlab.errors import UserError
from transferlab.views import Augmentation, faces_augmentation, info_of, photos_augmentation

# What our own augmentations print, by name and version. Where one of these changes, it draws
# something else: state a new version, so that nothing kept comes back for it, and pin that too.
PINNED = {
    ("faces", 1): (
        "Resize(size=[224, 224], interpolation=bilinear, antialias=True)",
        "RandomHorizontalFlip(p=0.5)",
        "RandomRotation(degrees=[-15.0, 15.0], interpolation=nearest, expand=False, fill=0)",
        "ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2))",
        "clean",
        "Resize(size=[224, 224], interpolation=bilinear, antialias=True)",
    ),
    ("photos", 1): (
        "RandomResizedCrop(size=(224, 224), scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333), "
        "interpolation=bilinear, antialias=True)",
        "RandomHorizontalFlip(p=0.5)",
        "RandomRotation(degrees=[-30.0, 30.0], interpolation=nearest, expand=False, fill=0)",
        "ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2))",
        "RandomAffine(degrees=[0.0, 0.0], translate=(0.1, 0.1), interpolation=nearest, fill=0)",
        "clean",
        "Resize(size=[256], interpolation=bilinear, antialias=True)",
        "CenterCrop(size=(224, 224))",
    ),
}


def buttons_augmentation(size: int = 224) -> Augmentation:
    """Buttons look the same from every side."""
    train = v2.Compose([v2.Resize((size, size)), v2.RandomRotation(180)])
    clean = v2.Compose([v2.Resize((size, size))])
    return Augmentation(name="buttons", version=3, size=size, train=train, clean=clean)


@pytest.fixture
def buttons(monkeypatch):
    """A dataset of one's own is one entry."""
    own = Dataset(name="my_buttons", label="buttons", augmentation=buttons_augmentation)
    monkeypatch.setitem(DATASETS, own.name, own)
    return own


@pytest.mark.parametrize("name", ["faces", "photos"])
def test_our_own_augmentations_are_pinned_to_their_versions(name):
    own = known_augmentations()[name](224)
    printed = (
        *(repr(step) for step in own.train.transforms),
        "clean",
        *(repr(step) for step in own.clean.transforms),
    )
    assert (own.name, own.version) in PINNED, "a new version is pinned here"
    assert printed == PINNED[own.name, own.version], "it draws something else: a new version"
    assert type(own.train) is type(own.clean) is v2.Compose


def test_every_datasets_augmentation_is_pinned():
    stated = [dataset.augmentation(224) for dataset in DATASETS.values()]
    assert {(one.name, one.version) for one in stated} >= set(PINNED)
    assert all(one.size == 224 for one in stated)
    for dataset in DATASETS.values():
        assert dataset.augmentation(96).size == 96


def test_the_studys_datasets():
    assert list(DATASETS)[:2] == [FACES.name, INSECTS.name]
    assert FACES.augmentation is faces_augmentation
    assert INSECTS.augmentation is photos_augmentation
    assert all(dataset.fetch and dataset.draw for dataset in (FACES, INSECTS))


def test_a_dataset_with_an_augmentation_of_its_own_is_one_entry(buttons):
    """By the folder's name it is what is compared with, by its own it can be asked for, and a
    record of it finds it again."""
    expected = info_of(buttons_augmentation())
    assert info_of(augmentation_for("my_buttons")) == expected
    assert info_of(chosen_augmentation("", "my_buttons", 224)) == expected
    assert info_of(chosen_augmentation("buttons", "hymenoptera_data", 224)) == expected
    assert info_of(chosen_augmentation("photos", "my_buttons", 224)) == info_of(
        photos_augmentation()
    )
    assert info_of(chosen_augmentation("", "any other folder", 224)) == info_of(
        photos_augmentation()
    )
    small = info_of(buttons_augmentation(96))
    assert info_of(augmentation_named(small)) == small


def test_the_command_line_knows_it_by_name(buttons, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "--augment {faces,photos," in printed and "buttons}" in printed
    with pytest.raises(SystemExit):
        main(["compare", "--models", "resnet18", "--data", "x", "--augment", "zippers"])


@pytest.mark.parametrize("size", [32, 224])
def test_a_records_augmentation_is_found_again(size):
    for own in (faces_augmentation(size), photos_augmentation(size)):
        assert info_of(augmentation_named(info_of(own))) == info_of(own)


def test_an_augmentation_that_is_another_by_now_is_refused(buttons):
    info = info_of(buttons_augmentation())
    with pytest.raises(UserError, match="version 2 of the augmentation 'buttons'.*is version 3"):
        augmentation_named(replace(info, version=2))
    for name in ("zippers", ""):
        with pytest.raises(UserError, match=f"augmentation '{name}' is not known here, only: "):
            augmentation_named(replace(info, name=name))


def test_one_without_a_name_cannot_be_asked_for(monkeypatch):
    nameless = Dataset(
        name="zippers",
        label="zippers",
        augmentation=lambda size: replace(buttons_augmentation(size), name=""),
    )
    monkeypatch.setitem(DATASETS, nameless.name, nameless)
    assert list(known_augmentations()) == ["faces", "photos"]
    assert augmentation_for("zippers").name == ""
    with pytest.raises(UserError, match="is not known here"):
        augmentation_named(info_of(augmentation_for("zippers")))
