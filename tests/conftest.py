import os

import matplotlib
import pytest
import torch
from PIL import Image, ImageDraw

from transferlab.data import load_images, split_images
from transferlab.features import view_blocks
from transferlab.study import Study
from transferlab.views import anime_views

matplotlib.use("Agg")
os.environ.pop("WEIGHTS_DIR", None)


@pytest.fixture(autouse=True)
def one_thread():
    """On images this small, threads that wait for each other on a busy machine cost ten times what they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Discs and squares, 8 of each, unsplit."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("disc", "square"):
        (folder / name).mkdir()
        for i in range(8):
            image = Image.new("RGB", (60 + i, 50), (20 * i, 90, 120))
            draw, box = ImageDraw.Draw(image), (10 + i, 8, 40 + i, 38)
            draw.ellipse(box, fill="white") if name == "disc" else draw.rectangle(box, fill="white")
            image.save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def study(image_folder):
    """A study on the small folder, 32 px, 4 epochs, 2 views, with timm's smallest test model in mind."""
    images, views = load_images(image_folder), anime_views(32)
    train, val = split_images(images, val_size=0.35, seed=1)
    settings = {"epochs": 4, "patience": 5, "batch_size": 4, "lr": 1e-2, "views": 2, "hidden": 8, "dropout": 0.5}
    return Study(images, views, {"train": train, "val": val}, view_blocks(images, views, seed=1), settings, 1)
