"""The audit tells copies from what only looks alike: on planted copies, on fruit before white, on
hands before one background; and stays bounded."""

import os

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import copies as benchmark
from benchmarks.copies import (
    ALTERATIONS,
    FRUIT_COLOURS,
    draw_backdrop,
    draw_fruits,
    draw_hand,
    draw_hands,
    score_set,
)
from transferlab.audit.align import SIDE, align, blur, move, shrink
from transferlab.audit.confirm import Thumbnails, compare_with, confirm_copies, match_windows
from transferlab.audit.copies import (
    CANDIDATE_BITS,
    NEAREST,
    Copy,
    Fingerprints,
    find_near_pairs,
    find_neighbours,
    hamming,
)
from transferlab.data import load_images
from transferlab.records import BenchmarkRecord, from_plain, read_plain
from transferlab.synthetic import draw_insects


@pytest.fixture(scope="module", autouse=True)
def hashes():
    pytest.importorskip(
        "imagehash", reason='imagehash is missing: pip install "transferlab[audit]"'
    )


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """14 drawn ants and bees, uint8 [3, H, W] each."""
    return load_images(
        draw_insects(tmp_path_factory.mktemp("drawn") / "insects", per_class=7)
    ).images


@pytest.fixture(scope="module")
def scenes():
    """8 hands, each before a background of its own, uint8 [3, H, W] each."""
    drawn = []
    for number in range(8):
        rng = np.random.default_rng(number)
        picture = draw_hand(rng, number % 6, draw_backdrop(rng))
        drawn.append(benchmark.to_tensor(picture))
    return drawn


def prints_of(bits, mirrored=None):
    """Fingerprints of hashes alone."""
    others = ~bits if mirrored is None else mirrored
    return Fingerprints(file_hash=(), pixel_hash=(), bits=bits, mirrored=others, modes=())


def find(images):
    """The confirmed pairs among images, as the audit finds them -> {(first, second): Copy}."""
    pictures = [benchmark.to_pillow(image) for image in images]
    bits, mirrored = benchmark.hash_pictures(pictures)
    neighbours = find_neighbours(prints_of(bits, mirrored))
    found = confirm_copies(images, find_near_pairs(neighbours), neighbours)
    return {(copy.first, copy.second): copy for copy in found}


def altered(image, name):
    return benchmark.to_tensor(ALTERATIONS[name](benchmark.to_pillow(image)))


# ---- alignment -------------------------------------------------------------------------------


def test_a_known_motion_and_another_light_are_undone(insects):
    fixed = torch.stack([shrink(image) for image in insects[:4]]).float()
    motion = torch.tensor([0.05, 0.03, 0.04, -0.03, -0.05, -0.02]).repeat(4, 1)
    moving = 0.7 * move(fixed, motion)[0] + 20
    found = align(fixed, moving)
    before = (blur(fixed) - blur(moving)).abs().mean()
    back = found.gain[:, None, None, None] * found.warped + found.bias[:, None, None, None]
    inside = found.inside[:, None].bool().expand_as(fixed)
    after = (blur(fixed) - blur(back)).abs()[inside].mean()
    assert after < 0.15 * before and found.gain == pytest.approx(torch.full((4,), 1 / 0.7), abs=0.1)


def test_what_is_pasted_on_does_not_pull(scenes):
    fixed = torch.stack([shrink(image) for image in scenes]).float()
    covered = fixed.clone()
    covered[:, :, 40:60, 15:50] = torch.tensor([170.0, 205, 225])[:, None, None]
    compared = match_windows(fixed, covered)
    above = slice(0, 30)  # rows of windows that the cover does not reach
    same = compared.same[:, above].float().mean()
    assert same > 0.99 * compared.told[:, above].float().mean()


def test_a_picture_is_itself_and_no_other(insects):
    thumbnails = Thumbnails(insects)
    compared = compare_with(thumbnails, 0, dict.fromkeys(range(14), False))
    assert compared.shares[0] == 1 and compared.shares[1:].max() < 0.3


def test_colour_tells_apart_what_light_does_not():
    grey = torch.full((3, SIDE, SIDE), 128.0)
    grey[:, 10:50, 10:50] = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) * 90
    tint = torch.tensor([60.0, -30, 0])[:, None, None]
    red, green = grey + tint, grey + tint.roll(1, 0)
    assert match_windows(red[None], green[None]).shares.item() < 0.2
    assert match_windows(red[None], grey[None]).shares.item() > 0.9, "a copy may be grey"


# ---- candidates ------------------------------------------------------------------------------


def test_neighbours_are_the_nearest_by_hash_or_mirror_image():
    rng = np.random.default_rng(0)
    bits = rng.random((30, 256)) < 0.5
    bits[7] = bits[3] ^ (rng.random(256) < 0.05)
    mirrored = rng.random((30, 256)) < 0.5
    mirrored[9] = bits[4]
    found = find_neighbours(prints_of(bits, mirrored))
    distance = np.minimum(hamming(bits, bits), hamming(bits, mirrored))
    np.fill_diagonal(distance, 999)
    assert (found.distance == np.sort(distance, axis=1)[:, :NEAREST]).all()
    pairs = {(copy.first, copy.second): copy for copy in find_near_pairs(found)}
    assert pairs[3, 7].how == "similar" and pairs[4, 9].how == "similar when mirrored"
    assert all(copy.distance <= CANDIDATE_BITS for copy in pairs.values())


def test_candidates_are_bounded_where_all_pictures_look_alike():
    same = np.ones((2000, 256), bool)
    found = find_near_pairs(find_neighbours(prints_of(same)))
    assert len(found) <= 2000 * NEAREST and len({*found}) == len(found)


def test_exact_copies_are_no_candidates():
    bits = np.ones((4, 256), bool)
    exact = [Copy(first=0, second=2, how="same bytes"), Copy(first=0, second=3, how="same bytes")]
    found = find_near_pairs(find_neighbours(prints_of(bits), exact))
    assert [(copy.first, copy.second) for copy in found] == [(0, 1)]
    everything = [Copy(first=0, second=other, how="same bytes") for other in (1, 2, 3)]
    assert not find_near_pairs(find_neighbours(prints_of(bits), everything))


# ---- what is confirmed -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ALTERATIONS)
def test_altered_copies_are_found_among_different_pictures(name, scenes):
    found = find([*scenes, *[altered(image, name) for image in scenes[:4]]])
    assert {*found} == {(0, 8), (1, 9), (2, 10), (3, 11)}


def test_a_picture_in_ten_variants_is_found_in_all(insects):
    """Copies are no background to each other."""
    variants = [altered(insects[0], name) for name in ALTERATIONS if "mask" not in name]
    found = find([*insects[:6], *variants])
    groups = {one for pair in found for one in pair}
    assert groups == {0, *range(6, 6 + len(variants))}
    assert len(found) > 0.9 * len(variants) * (len(variants) + 1) / 2


def test_fruit_before_white_is_told_apart():
    """By the hash alone, many pairs; none across colours is confirmed."""
    fruits = draw_fruits(FRUIT_COLOURS, 24)
    scores = score_one(fruits, "JPEG quality 30")
    assert scores["hash"].serious > 20
    assert scores["pixels"].serious == 0 and scores["pixels"].recall == 1


def test_hands_before_one_background_are_told_apart():
    hands = draw_hands(24)
    scores = score_one(hands, "2 % cropped away")
    assert scores["hash"].serious > 30
    assert scores["pixels"].serious == 0 and scores["pixels"].recall == 1


def score_one(pictures, name):
    """{rule: its score} on one alteration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "ALTERATIONS", {name: ALTERATIONS[name]})
        return {score.rule: score for score in score_set(pictures)}


def test_blank_pictures_are_no_copies():
    rng = torch.Generator().manual_seed(0)
    blank = [(250 + 3 * torch.rand(3, 80, 80, generator=rng)).byte() for _ in range(6)]
    assert find(blank) == {}


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (5, 5)])
def test_pictures_of_any_size_can_be_compared(size):
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)) for _ in range(4)]
    assert all(0 <= copy.share <= 1 for copy in find(images).values())


@pytest.mark.slow
def test_masked_and_other_copies_of_real_pictures_are_found():
    """Of 40 manga faces and 40 ants and bees, at least 36 of each alteration; no wrong pair."""
    place = os.environ.get("TRANSFERLAB_TEST_DATA")
    if not place:
        pytest.skip("TRANSFERLAB_TEST_DATA names no folder with the real images")
    for one in benchmark.real_sets(place, 40):
        for score in score_set(one.make()):
            if score.rule == "pixels":
                assert score.found >= 36 and score.wrong == 0, (one.data.name, score)


# ---- the benchmark ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_runs_on_drawn_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ALTERATIONS", {"mirrored": ALTERATIONS["mirrored"]})
    sets = benchmark.drawn_sets

    def two(count):
        return [
            one for one in sets(count) if one.data.name in ("drawn insects", "fruit, three colours")
        ]

    monkeypatch.setattr(benchmark, "drawn_sets", two)
    assert benchmark.main(["--pictures", "14", "--out", str(tmp_path)]) == 0
    (table,) = (tmp_path / "result" / "benchmarks").glob("copies_*.csv")
    rows = pd.read_csv(table)
    assert len(rows) == 4 and rows.synthetic.all()
    assert (rows.query("rule == 'pixels'").recall == 1).all()
    (path,) = (tmp_path / "result" / "benchmarks").glob("copies_*.json")
    record = from_plain(BenchmarkRecord, read_plain(path))
    assert [one.name for one in record.data] == ["drawn insects", "fruit, three colours"]
    assert all(one.synthetic for one in record.data) and record.facts["pictures"] == 14
    assert "drawn insects: hash 14 of 14" in capsys.readouterr().out
