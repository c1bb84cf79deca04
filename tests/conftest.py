import hashlib
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import matplotlib
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from transferlab.data import load_images, split_images
from transferlab.machine import this_machine
from transferlab.study import Study
from transferlab.train import Settings
from transferlab.views import Renderer, faces_augmentation

matplotlib.use("Agg")
os.environ.pop("WEIGHTS_DIR", None)


def pytest_configure():
    """Heeds signals also where the tests run in the background, whose processes ignore some, and
    hand that down to their own."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_IGN:
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def one_thread():
    """On images this small, threads that wait for each other on a busy machine cost ten times what
    they save."""
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
    """A study on the small folder, 32 px, 4 epochs, 2 random views, with timm's smallest test model
    in mind."""
    images = load_images(image_folder)
    settings = Settings(epochs=4, patience=5, batch_size=4, lr=1e-2, views=2, hidden=8, dropout=0.5)
    return Study(
        renderer=Renderer(images, faces_augmentation(32), seed=1),
        fold=split_images(images, val_size=0.35, seed=1),
        settings=settings,
        machine=this_machine(),
        seed=1,
    )


@pytest.fixture
def tiny_file(tmp_path):
    """Weights of timm's smallest ResNet with 5 classes, as NAME.safetensors in a folder of its
    own."""
    torch.manual_seed(0)
    path = tmp_path / "weights" / "test_resnet.safetensors"
    path.parent.mkdir()
    save_file(timm.create_model("test_resnet.r160_in1k", num_classes=5).state_dict(), path)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in of the hub on 127.0.0.1 and an empty cache; `files` maps a path to its bytes."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.server.files.get(self.path)
            self.send_response(200 if body else 404)
            if body:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET" and body:
                self.wfile.write(body[: self.server.cut])

        do_GET = do_HEAD = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cut = {}, None
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    url = f"http://127.0.0.1:{server.server_port}"
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    values = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    for (
        name,
        value,
    ) in values.items():  # older versions have their own copies of the constants in file_download
        monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.file_download, name, value, raising=False)
    yield server
    server.shutdown()
    server.server_close()
