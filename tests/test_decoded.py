"""A folder decoded on several cores: the same images, in the same order."""

import threading

import pytest
import torch

from transferlab.data import load_images
from transferlab.decoded import MapAhead, load_folder
from transferlab.machine import one_core_threads
from transferlab.synthetic import draw_insects


@pytest.fixture
def pool():
    with one_core_threads(2) as threads:
        yield threads


def test_what_each_item_gives_or_raises_comes_in_its_turn(pool):
    found = []
    ahead = MapAhead(pool, 4, (6).__floordiv__, [3, 0, 2, 0, 1])
    for _ in range(5):
        try:
            found.append(next(ahead))
        except ZeroDivisionError:
            found.append(None)
    assert found == [2, None, 3, None, 6]
    assert next(ahead, "ended") == "ended"


def test_two_are_computed_at_once_and_no_more_than_asked_for_are_under_way(pool):
    together = threading.Barrier(2, timeout=10)
    begun = []

    def meet(item):
        begun.append(item)
        together.wait()  # for one alone it would break
        return item

    taken = iter(MapAhead(pool, 2, meet, range(10)))
    assert next(taken) == 0 and sorted(begun) == [0, 1]
    assert list(taken) == list(range(1, 10))


def test_decoding_on_several_cores_changes_nothing(tmp_path, monkeypatch):
    """What cannot be read is left out in its place."""
    folder = draw_insects(tmp_path / "insects", per_class=5)
    (sorted(folder.rglob("*.*"))[2]).write_bytes(b"no picture")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    one, several = load_images(folder), load_folder(folder)
    assert one.digest == several.digest and one.paths == several.paths
    assert len(one.rejected) == 1 and one.rejected == several.rejected
    assert torch.equal(one.labels, several.labels)
    alike = [torch.equal(a, b) for a, b in zip(one.images, several.images, strict=True)]
    assert all(alike) and len(alike) == 9
