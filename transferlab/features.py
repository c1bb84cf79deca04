"""The frozen part over views: computed once, kept, and handed to the epochs."""

import functools
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import torch

from .artifacts import machine
from .backbones import choose_batch_size, choose_precision, fold_batchnorm, state_hash
from .cache import load_or_extract
from .errors import UserError
from .views import render_view


@contextmanager
def timed(timings, phase):
    """Adds the seconds that its block takes to `timings[phase]`."""
    started = time.perf_counter()
    yield
    timings[phase] = timings.get(phase, 0.0) + time.perf_counter() - started


def view_blocks(image_set, views, *, seed, keep=0):
    """Makes `blocks(view, indices)`: yields that view of those images, uint8 [<= 32, 3, H, W] at a time.

    The last `keep` blocks that were rendered for one backbone are kept for the next (5 MB each at 224 px).
    """

    @functools.lru_cache(maxsize=keep)
    def block(view, *part):
        return render_view(
            image_set, views.train if view else views.val, view=view, seed=seed, indices=part
        )

    return lambda view, indices: (block(view, *part.tolist()) for part in indices.split(32))


def one_ahead(blocks):
    """Yields what `blocks` yields, the next one prepared in a second thread meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, blocks := iter(blocks), None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block


@torch.inference_mode()
def extract(lower, views, *, device, precision):
    """Runs the frozen part over blocks of uint8 images [n, 3, H, W] (or one tensor of all) -> fp32 features [N, ...] on the CPU.

    The next block is rendered while the model computes; what is kept is fp32, whatever `precision` is.
    """
    features = []
    for block in one_ahead(views.split(32) if isinstance(views, torch.Tensor) else views):
        batch_size = choose_batch_size(device, block[0, 0].numel())
        for images in (
            block.to(device).contiguous(memory_format=torch.channels_last).split(batch_size)
        ):
            with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                features.append(lower(images).float())
    return torch.cat(features).cpu()


def extract_large(lower, views, count, folder, *, device, precision):
    """As `extract`, for the activations [count, ...] at a deep cut: where they would take more than half of the memory that
    is free, they are written to a file in `folder` as they come, and mapped into memory. It vanishes with the tensor.

    Raises:
        UserError: the file cannot be written.
    """
    blocks = one_ahead(views.split(32) if isinstance(views, torch.Tensor) else views)
    first = extract(lower, next(blocks), device=device, precision=precision)
    rest = (extract(lower, block, device=device, precision=precision) for block in blocks)
    if first[0].nbytes * count < psutil.virtual_memory().available / 2:
        return torch.cat([first, *rest])
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            written = sum(file.write(part.contiguous().numpy()) for part in (first, *rest))
            file.flush()
            kept = torch.from_file(file.name, shared=True, size=written // first.element_size())
    except OSError as error:
        raise UserError(
            f"activations cannot be written to {folder} ({error.strerror}): make room, or cut later"
        ) from error
    return kept.view(count, *first.shape[1:])


def feature_drawer(lower, blocks, indices, key, *, cache_dir, timings):
    """Makes `draw(part, view)`: features [N, ...] of the images `indices[part]` in that view, computed once and kept.

    `indices` holds "train" and "val". Validation images run in fp32, training views in the precision of the machine.
    `key` says what the images and transforms are; with `cache_dir` the features are kept on disk too. Seconds go to
    `timings`: "training views", "validation images", and "features from disk" for what an earlier run has computed.
    """
    device = next(lower.parameters()).device
    key = key | {
        "weights": state_hash(lower),
        "cut": "features",
        "device": device.type,
        "versions": machine()["versions"],
    }
    key["revision"] = 1  # of rendering and folding: raised whenever they compute something else
    folded = fold_batchnorm(lower)

    @functools.cache
    def draw(part, view):
        precision = torch.float32 if part == "val" else choose_precision(device)
        wanted = key | {
            "indices": indices[part].tolist(),
            "view": view,
            "precision": str(precision),
        }
        phase, started = "features from disk", time.perf_counter()

        def compute():
            nonlocal phase
            phase = "validation images" if part == "val" else "training views"
            return extract(folded, blocks(view, indices[part]), device=device, precision=precision)

        features = load_or_extract(cache_dir, wanted, compute)
        timings[phase] = timings.get(phase, 0.0) + time.perf_counter() - started
        return features

    return draw
