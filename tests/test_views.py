"""The study's transforms, and views that depend on seed, view and path alone."""

import copy
import functools
import hashlib
import random
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from transferlab.datasets import augmentation_for
from transferlab.views import (
    Augmentation,
    AugmentationInfo,
    faces_augmentation,
    identity_of,
    info_of,
    photos_augmentation,
    printed,
    render_view,
)

EVERYTHING = torch.arange(3)


@dataclass(frozen=True, kw_only=True, eq=False)
class Few:
    """What rendering reads of an image set."""

    images: list[torch.Tensor]
    paths: list[str]
    labels: torch.Tensor


@pytest.fixture
def few():
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 60), (50, 50), (70, 30)]
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]
    return Few(images=images, paths=["a/0", "a/1", "b/0"], labels=torch.tensor([0, 0, 1]))


def test_transforms_are_the_studys():
    jitter = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
    anime = [v2.Resize((224, 224)), v2.RandomHorizontalFlip(), v2.RandomRotation(15), jitter]
    insects = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.RandomRotation(30), jitter]
    insects.append(v2.RandomAffine(0, translate=(0.1, 0.1)))
    assert repr(faces_augmentation().train) == repr(v2.Compose(anime))
    assert repr(faces_augmentation().clean) == repr(v2.Compose([v2.Resize((224, 224))]))
    assert repr(photos_augmentation().train) == repr(v2.Compose(insects))
    assert repr(photos_augmentation().clean) == repr(
        v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    )


def rendered_of(few, transform, *, view=1, seed=0, indices=EVERYTHING):
    """A view of all images, if not told otherwise."""
    return render_view(few, transform, view=view, seed=seed, indices=indices)


@pytest.mark.parametrize("views", [faces_augmentation(32), photos_augmentation(32)])
def test_a_view_is_the_transform_under_its_own_seed(few, views):
    """The seeds are pinned: other ones would be other views, and published runs would not come
    again."""
    rendered = rendered_of(few, views.train, view=3, seed=7)
    assert rendered.shape == (3, 3, 32, 32) and rendered.dtype == torch.uint8
    for image, path, one in zip(few.images, few.paths, rendered):
        digest = hashlib.sha256(f"7/3/{path}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        assert torch.equal(views.train(image), one)


def test_what_an_image_gets_depends_on_nothing_else(few):
    train = faces_augmentation(32).train
    all_of_them = rendered_of(few, train)
    some = torch.tensor([2, 0])
    assert torch.equal(rendered_of(few, train, indices=some), all_of_them[some])
    assert not torch.equal(rendered_of(few, train, view=2), all_of_them)
    assert not torch.equal(rendered_of(few, train, seed=1), all_of_them)


def test_every_seed_view_and_path_draws_under_a_seed_of_its_own(few):
    seeds = []

    def draw(image):
        seeds.append(torch.initial_seed())
        return image[:, :2, :2]

    for seed in range(5):
        for view in range(5):
            rendered_of(few, draw, view=view, seed=seed)
    assert len(set(seeds)) == len(seeds) == 75


def test_the_global_random_state_is_left_alone(few):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rendered_of(few, photos_augmentation(32).train)
    assert torch.equal(torch.rand(3), expected)


def test_transforms_equal_the_studys_in_every_attribute():
    def attributes(transform):
        return type(transform), {
            key: str(value) for key, value in vars(transform).items() if not key.startswith("_")
        }

    jitter = v2.ColorJitter(0.2, 0.2, 0.2)
    anime = [v2.Resize((224, 224)), v2.RandomHorizontalFlip(), v2.RandomRotation(15), jitter]
    insects = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.RandomRotation(30), jitter]
    insects.append(v2.RandomAffine(0, translate=(0.1, 0.1)))
    for views, train, clean in (
        (faces_augmentation(), anime, [v2.Resize((224, 224))]),
        (photos_augmentation(), insects, [v2.Resize(256), v2.CenterCrop(224)]),
    ):
        assert [attributes(step) for step in views.train.transforms] == [
            attributes(step) for step in train
        ]
        assert [attributes(step) for step in views.clean.transforms] == [
            attributes(step) for step in clean
        ]


def test_order_repetition_and_path(few):
    train = photos_augmentation(32).train
    whole = rendered_of(few, train)
    assert torch.equal(rendered_of(few, train), whole)
    turned = replace(few, images=few.images[::-1], paths=few.paths[::-1])
    assert torch.equal(rendered_of(turned, train), whole.flip(0))
    renamed = rendered_of(replace(few, paths=["c/0", "c/1", "c/2"]), train)
    assert not any(torch.equal(one, other) for one, other in zip(whole, renamed))


def test_no_random_state_and_no_image_changes(few):
    before, copies = (
        (random.getstate(), np.random.get_state()[1].tolist()),
        [image.clone() for image in few.images],
    )
    for views in (faces_augmentation(32), photos_augmentation(32)):
        rendered_of(few, views.train)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert all(torch.equal(copy, image) for copy, image in zip(copies, few.images))


def test_a_dataset_gets_its_views_by_name():
    photos = photos_augmentation(64)
    expected = {
        "manga_facial_expressions": faces_augmentation(64),
        "hymenoptera_data": photos,
        "buttons": photos,
    }
    assert {name: info_of(augmentation_for(name, 64)) for name in expected} == {
        name: info_of(views) for name, views in expected.items()
    }


def test_what_a_record_says_of_an_augmentation():
    views = photos_augmentation(64)
    assert info_of(views) == AugmentationInfo(
        name="photos", version=1, size=64, train=repr(views.train), clean=repr(views.clean)
    )


def test_what_prints_an_address_prints_the_same_in_every_process():
    """Else nothing that is kept would be found again."""

    class Plain:
        def __call__(self, image):
            return image

    one, other = (
        Augmentation(size=32, train=transform, clean=v2.Compose([transform]))
        for transform in (Plain(), Plain())
    )
    assert repr(one.train) != repr(other.train)
    assert printed(one.train) == printed(other.train) and "Plain object" in printed(one.train)
    assert info_of(one) == info_of(other)


# ---- what is kept ------------------------------------------------------------------------------


class Shade(v2.Transform):
    """Prints none of its parameters, as many that people write."""

    def __init__(self, by):
        super().__init__()
        self._by = by

    def transform(self, inpt, params):
        return inpt // self._by


Shade.__module__ = "shades"  # as of a package


def halve(image):
    return image // 2


def of(train, **stated):
    return Augmentation(**{"name": "own", "size": 8} | stated, train=train, clean=v2.Resize(8))


@pytest.mark.parametrize(
    "one, other",
    [
        (of(Shade(2)), of(Shade(3))),
        (of(v2.Compose([Shade(2)])), of(v2.Compose([Shade(3)]))),
        (of(v2.RandomApply([v2.Resize(8)], p=0.2)), of(v2.RandomApply([v2.Resize(8)], p=0.9))),
        (of(v2.Resize(8)), of(v2.Resize(8), version=2)),
        (of(v2.Resize(8)), of(v2.Resize(8), name="other")),
        (of(v2.Lambda(torch.abs)), of(v2.Lambda(torch.neg))),
    ],
)
def test_augmentations_that_draw_differently_are_told_apart(one, other):
    first = identity_of(one)
    assert first and first == identity_of(copy.deepcopy(one)) != identity_of(other)


@pytest.mark.slow
def test_those_of_the_study_have_an_identity_that_another_process_finds_again():
    code = "from transferlab.views import *; print(identity_of(photos_augmentation()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == identity_of(photos_augmentation())
    assert identity_of(faces_augmentation()) != identity_of(faces_augmentation(64)) != ""


@pytest.mark.parametrize(
    "train",
    [v2.Lambda(halve), v2.Lambda(lambda image: image), halve, functools.partial(torch.abs)],
)
def test_what_is_known_by_its_name_alone_has_no_identity(train):
    assert identity_of(of(train)) == identity_of(of(v2.Compose([train]))) == ""


def test_without_a_name_there_is_no_identity():
    assert identity_of(of(v2.Resize(8), name="")) == ""
