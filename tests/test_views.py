"""The study's transforms, and views that depend on seed, view and path alone."""

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from transferlab.datasets import augmentation_for
from transferlab.views import faces_augmentation, photos_augmentation, render_view, view_seed


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


@pytest.mark.parametrize("views", [faces_augmentation(32), photos_augmentation(32)])
def test_a_view_is_the_transform_under_its_own_seed(few, views):
    rendered = render_view(few, views.train, view=3, seed=7)
    assert rendered.shape == (3, 3, 32, 32) and rendered.dtype == torch.uint8
    for image, path, one in zip(few.images, few.paths, rendered):
        torch.manual_seed(view_seed(7, 3, path))
        assert torch.equal(views.train(image), one)


def test_what_an_image_gets_depends_on_nothing_else(few):
    train = faces_augmentation(32).train
    all_of_them = render_view(few, train, view=1, seed=0)
    assert torch.equal(
        render_view(few, train, view=1, seed=0, indices=torch.tensor([2, 0])), all_of_them[[2, 0]]
    )
    assert not torch.equal(render_view(few, train, view=2, seed=0), all_of_them)
    assert not torch.equal(render_view(few, train, view=1, seed=1), all_of_them)
    assert len({view_seed(s, v, p) for s in range(5) for v in range(5) for p in few.paths}) == 75


def test_the_global_random_state_is_left_alone(few):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    render_view(few, photos_augmentation(32).train, view=1, seed=0)
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
    whole = render_view(few, train, view=1, seed=0)
    assert torch.equal(render_view(few, train, view=1, seed=0), whole)
    assert torch.equal(
        render_view(
            replace(few, images=few.images[::-1], paths=few.paths[::-1]), train, view=1, seed=0
        ),
        whole.flip(0),
    )
    renamed = render_view(replace(few, paths=["c/0", "c/1", "c/2"]), train, view=1, seed=0)
    assert not any(torch.equal(one, other) for one, other in zip(whole, renamed))


def test_no_random_state_and_no_image_changes(few):
    before, copies = (
        (random.getstate(), np.random.get_state()[1].tolist()),
        [image.clone() for image in few.images],
    )
    for views in (faces_augmentation(32), photos_augmentation(32)):
        render_view(few, views.train, view=1, seed=0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert all(torch.equal(copy, image) for copy, image in zip(copies, few.images))


def test_a_dataset_gets_its_views_by_name():
    photos = photos_augmentation(64)
    expected = {
        "manga_facial_expressions": faces_augmentation(64),
        "hymenoptera_data": photos,
        "buttons": photos,
    }
    assert {name: augmentation_for(name, 64).info() for name in expected} == {
        name: views.info() for name, views in expected.items()
    }
