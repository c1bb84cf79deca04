"""The audit finds what was planted: every kind of defect in drawn pictures, flipped labels, leaks;
and leaves the folder alone."""

import argparse
import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import font_manager
from PIL import Image, ImageOps

from transferlab.__main__ import main
from transferlab.audit import record
from transferlab.audit.copies import Copy, group_copies, hamming, take_fingerprints
from transferlab.audit.crossval import choose_folds, draw_folds, out_of_fold
from transferlab.audit.figures import NAMED, clip, plot_audit, width_of
from transferlab.audit.findings import FINDING_KINDS, Finding
from transferlab.audit.labels import check_suspects, find_suspects
from transferlab.audit.leaks import (
    LeakTest,
    describe_leak,
    measure_leak,
    measure_page_leak,
    page_of,
)
from transferlab.audit.record import AuditRecord
from transferlab.audit.result import AuditResult, CleanFeatures, audit_images, clean_features
from transferlab.commands import audit
from transferlab.data import load_images
from transferlab.errors import DataError, UserError
from transferlab.machine import this_machine
from transferlab.pretrained import WeightsInfo
from transferlab.published import read_record
from transferlab.synthetic import draw_insects
from transferlab.views import faces_augmentation, info_of

TINY = {"model": "test_resnet.r160_in1k", "weights": "none"}


@pytest.fixture(scope="module")
def extras():
    for name in ("cleanlab", "cleanvision", "imagehash"):
        pytest.importorskip(name, reason=f'{name} is missing: pip install "transferlab[audit]"')


def run_audit(folder, out):
    """Audits with the tiny model and no store -> exit code."""
    parser = argparse.ArgumentParser()
    audit.add_options(parser)
    backbone = ["--model", TINY["model"], "--weights", TINY["weights"]]
    places = ["--out", str(out), "--cache-dir", ""]
    return audit.run(parser.parse_args([str(folder), *backbone, *places]))


def hash_files(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def draw_colours(folder, per_class=12):
    """Noise on red and on blue, 40 px: pictures that a random backbone tells apart."""
    rng = np.random.default_rng(0)
    for name, colour in (("blue", (30, 60, 160)), ("red", (160, 60, 30))):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            noise = rng.integers(0, 90, (40, 40, 1))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(
                folder / name / f"{i:02}.png"
            )
    return folder


def plant_defects(folder, spare):
    """Puts a defect of every kind into drawn ants and bees; `spare` holds more of them, each used
    once."""
    train, val = folder / "train", folder / "val"
    whole = io.BytesIO()
    Image.open(train / "ants" / "000.png").save(whole, "JPEG")
    (train / "ants" / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (val / "bees" / "text.jpg").write_text("no picture\n")
    (val / "bees" / ".DS_Store").write_bytes(b"left by a system")
    shutil.copy(train / "ants" / "001.png", train / "ants" / "imageNotFound.png")
    shutil.copy(train / "ants" / "000.png", train / "bees" / "other class.png")
    shutil.copy(train / "ants" / "001.png", train / "ants" / "same class.png")
    Image.open(train / "bees" / "000.png").save(train / "bees" / "same pixels.bmp")
    small = Image.open(train / "ants" / "002.png")
    small.resize((small.width // 2, small.height // 2)).save(
        val / "ants" / "other split.jpg", quality=50
    )
    ImageOps.mirror(Image.open(train / "bees" / "001.png")).save(train / "bees" / "mirrored.png")
    Image.open(spare / "train" / "ants" / "000.png").resize((1500, 1500)).save(
        train / "ants" / "huge.jpg"
    )
    Image.open(spare / "train" / "bees" / "000.png").convert("L").save(train / "bees" / "grey.png")
    Image.open(spare / "train" / "ants" / "001.png").convert("CMYK").save(
        train / "ants" / "cmyk.jpg"
    )
    Image.new("RGB", (256, 256), (3, 3, 3)).save(train / "ants" / "black.png")


@pytest.fixture(scope="module")
def planted(extras, tmp_path_factory):
    """An audit of a folder that holds an image folder with defects -> (exit code, printed text,
    findings, out)."""
    root, out = tmp_path_factory.mktemp("planted"), tmp_path_factory.mktemp("out")
    plant_defects(
        draw_insects(root / "insects", per_class=8),
        draw_insects(out / "spare", per_class=3, seed=1),
    )
    before, text = hash_files(root), io.StringIO()
    with contextlib.redirect_stdout(text):
        code = run_audit(root, out)
    assert hash_files(root) == before, "an audit never writes into the folder"
    (table,) = (out / "result").glob("audit_findings_*.csv")
    return code, text.getvalue(), pd.read_csv(table, keep_default_na=False), out


def found(planted, kind):
    """{(path, other_path) without the folder's name: serious} of one kind."""
    table = planted[2][planted[2]["kind"] == kind]
    paths = zip(*(table[name].str.removeprefix("insects/") for name in ("path", "other_path")))
    return dict(zip(paths, table["serious"].tolist()))


def test_files_that_cannot_be_read_and_placeholders(planted):
    assert planted[0] == 1
    expected = {
        ("train/ants/cut.jpg", ""): True,
        ("val/bees/text.jpg", ""): True,
    }
    assert found(planted, "unreadable") == expected
    assert found(planted, "placeholder") == {("train/ants/imageNotFound.png", ""): True}


def test_duplicates_are_serious_across_classes_and_splits(planted):
    assert found(planted, "duplicate") == {
        ("train/ants/000.png", "train/bees/other class.png"): True,
        ("train/ants/001.png", "train/ants/same class.png"): False,
        ("train/bees/000.png", "train/bees/same pixels.bmp"): False,
    }
    assert found(planted, "near_duplicate") == {
        ("train/ants/002.png", "val/ants/other split.jpg"): True,
        ("train/bees/001.png", "train/bees/mirrored.png"): False,
    }


def test_outliers_in_size_mode_and_light(planted):
    details = {
        path: detail
        for kind, path, detail in planted[2][["kind", "path", "detail"]].values
        if kind == "outlier"
    }
    assert details["insects/train/ants/huge.jpg"].startswith("odd size: 1500 x 1500")
    assert details["insects/train/bees/grey.png"] == "colour mode L, most are RGB"
    assert details["insects/train/ants/cmyk.jpg"] == "colour mode CMYK, most are RGB"
    assert (
        "dark: 256 x 256 pixels"
        in planted[2]["detail"][planted[2]["path"] == "insects/train/ants/black.png"].tolist()
    )
    assert not planted[2]["serious"][planted[2]["kind"] == "outlier"].any()


def test_without_a_font_for_its_classes_one_line_says_so(extras, tmp_path, monkeypatch, capsys):
    folder = draw_colours(tmp_path / "images")
    next(one for one in folder.iterdir() if one.is_dir()).rename(folder / "고양이")
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    with plt.rc_context(), warnings.catch_warnings(record=True) as caught:
        run_audit(folder, tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.out.count("note: no font here draws 고양이: install one") == 1
    assert not [one for one in caught if "Glyph" in str(one.message)]


def test_what_is_written_and_printed(planted):
    _, text, table, out = planted
    assert list(table.columns[:5]) == ["kind", "path", "other_path", "score", "serious"]
    assert set(table["kind"]) <= set(FINDING_KINDS) and table["score"].between(-1, 1).all()
    names = {
        path.name.rsplit("_", 2)[0]
        for place in ("result", "img")
        for path in (out / place).iterdir()
    }
    always = {"audit_findings", "audit_leak", "audit_summary", "audit"}
    assert always <= names <= {*always, "audit_labels"}
    assert (
        "! insects/train/ants/000.png = insects/train/bees/other class.png: same bytes, "
        "across classes (ants, bees)" in text
    )
    assert (
        "synthetic" in text
        and "random weights" in text
        and "Serious (marked !): unreadable 2" in text
    )
    (leaks,) = (out / "result").glob("audit_leak_*.csv")
    leaks = pd.read_csv(leaks)
    assert (
        set(leaks["grouping"]) == {"near_duplicate"}
        and leaks[["random", "grouped"]].stack().between(0, 1).all()
    )


def test_the_record_is_read_back(planted):
    _, _, table, out = planted
    (path,) = (out / "result").glob("audit_summary_*.json")
    record = read_record(path, AuditRecord)
    assert record.counts == table["kind"].value_counts().to_dict()
    assert record.serious == table.loc[table["serious"], "kind"].value_counts().to_dict()
    assert sum(record.class_sizes.values()) == record.data[0].n and record.data[0].synthetic
    assert len(record.data[0].rejected) == sum(table["kind"].isin(["unreadable", "placeholder"]))
    (leak,) = record.leaks
    assert leak.grouping == "near_duplicate" and len(leak.random) == len(leak.grouped) == 5
    assert record.weights[0].name == TINY["model"] and not record.weights[0].measures_transfer
    assert record.augmentation == info_of(faces_augmentation(160))


def test_a_clean_folder_gives_0_twice_the_same(extras, tmp_path, capsys):
    folder = draw_colours(tmp_path / "colours")
    arguments = [
        "audit",
        str(folder),
        "--model",
        TINY["model"],
        "--weights",
        "none",
        "--cache-dir",
        "",
    ]
    texts = []
    for out in ("a", "b"):
        assert main([*arguments, "--out", str(tmp_path / out)]) == 0
        (table,) = (tmp_path / out / "result").glob("audit_findings_*.csv")
        texts.append(table.read_text())
    assert texts[0] == texts[1] == "kind,path,other_path,score,serious,detail\n"
    assert "Nothing serious" in capsys.readouterr().out


def test_a_random_backbone_meets_images_in_batches_before_it_is_used(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "transferlab.backbones.update_bn",
        lambda batches, model: sizes.extend(batch.shape for batch in batches),
    )
    images = load_images(draw_colours(tmp_path / "colours", per_class=20))
    clean_features(images, **TINY, machine=this_machine())
    assert sizes == [(20, 3, 160, 160)] * 2  # its own size


def test_the_figure_names_the_weights_by_their_label(extras, tmp_path):
    folder = draw_colours(tmp_path / "colours")
    images = load_images(folder)
    features = clean_features(images, **TINY, machine=this_machine())
    assert info_of(features.augmentation) == info_of(faces_augmentation(160))
    figure = plot_audit(audit_images(images, features, folder=folder, root=tmp_path))
    assert figure.get_suptitle().endswith(f"{TINY['model']}, weights: random")
    plt.close(figure)


def test_flipped_labels_are_found_on_images(extras, tmp_path, capsys):
    """Of 3 labels flipped among 24 pictures, all 3 were measured to lead the list (recall 1.0)."""
    folder = draw_colours(tmp_path / "colours")
    flipped = {
        "red/07.png": "blue/from red.png",
        "red/11.png": "blue/from red too.png",
        "blue/03.png": "red/from blue.png",
    }
    for source, target in flipped.items():
        (folder / source).rename(folder / target)
    assert run_audit(folder, tmp_path / "out") == 0  # suspects are worth a look, no more
    (table,) = (tmp_path / "out" / "result").glob("audit_findings_*.csv")
    ranked = pd.read_csv(table).query("kind == 'label'")
    recall = len(set(ranked["path"][:3]) & set(flipped.values())) / 3
    assert recall == 1.0, f"recall among the first 3 is {recall:.2f}"
    assert (
        ranked["score"].is_monotonic_increasing
        and "looks like red" in ranked["detail"].iloc[0] + ranked["detail"].iloc[1]
    )
    assert len([*(tmp_path / "out" / "img").glob("audit_labels_*.png")]) == 1


def blobs(n=200, classes=4, seed=0, spread=1.0):
    """Features [n, 32] around one centre a class, their labels, and a group for each image."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (
        (rng.normal(size=(classes, 32))[labels] + spread * rng.normal(size=(n, 32))).astype(
            np.float32
        ),
        labels,
        np.arange(n),
    )


def test_the_recall_that_the_audit_reports_of_itself(extras):
    """5 % flipped among 200: measured 0.83 of them among the 8.3 suspects, and 1.00 among the first
    10 of the ranking."""
    checked = check_suspects(*blobs())
    assert checked.flipped == 10 and checked.recall >= 0.75 and checked.recall_top >= 0.95, (
        f"measured: {checked}"
    )
    assert checked.flagged < 15


def test_a_leak_through_pages_shows_as_a_drop():
    """Every page has a look of its own and one label: random folds know the pages, grouped folds
    can only guess."""
    rng = np.random.default_rng(0)
    page, label_of = np.repeat(np.arange(30), 4), np.arange(30) % 3
    features = (rng.normal(size=(30, 64))[page] + 0.1 * rng.normal(size=(120, 64))).astype(
        np.float32
    )
    paths = [f"c/{number:03}_{i}_2_30_30.png" for i, number in enumerate(page)]
    leak = measure_page_leak(
        np.concatenate([features, features[:5]]),
        np.append(label_of[page], [0] * 5),
        [*paths, *["c/x.png"] * 5],
    )
    assert (leak.images, leak.groups, leak.folds) == (120, 30, 5)
    assert (
        min(leak.random) > 0.95
        and max(leak.grouped) < 0.6
        and leak.low > 0.3
        and leak.low < leak.drop < leak.high
    )
    assert leak.drop == pytest.approx(np.mean(leak.random) - np.mean(leak.grouped))
    honest = measure_leak(*blobs()[:2], page[rng.permutation(120)].repeat(2)[:200], "page")
    assert abs(honest.drop) < 0.05, "groups that mean nothing cost nothing"


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.1, 0.3, None),
        (0.0, 0.3, "0 lies in the interval: no leak is shown"),
        (-0.1, 0.0, "0 lies in the interval: no leak is shown"),
        (-0.5, -0.3, "accuracy does not fall: no leak is shown"),
    ],
)
def test_what_an_interval_says_of_a_leak(low, high, told):
    leak = LeakTest(
        grouping="page",
        images=40,
        groups=8,
        folds=4,
        random=(0.5, 0.5),
        grouped=(0.5, 0.5),
        drop=(low + high) / 2,
        low=low,
        high=high,
    )
    assert describe_leak(leak).partition("; ")[2] == (told or "")


def test_folds_keep_groups_together_and_every_image_is_tested_once():
    features, labels, _ = blobs(60, 3)
    groups = np.arange(60) // 4
    for kept in (None, groups):
        parts = draw_folds(labels, kept, 5, seed=1)
        assert sorted(np.concatenate([part.test for part in parts])) == [*range(60)]
        assert kept is None or all(
            not set(groups[part.train]) & set(groups[part.test]) for part in parts
        )
        assert out_of_fold(features, labels, parts).sum(axis=1) == pytest.approx(np.ones(60))
    assert (
        choose_folds(labels, groups) == 5
        and choose_folds(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])) == 0
    )


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("happy/012_341_666_134_134.png", "012"),
        ("a/vol 2 p3_1_2_3_4.jpg", "vol 2 p3"),
        ("a/Page-12b.png", "Page-12"),
        ("a/page_3_face_2.png", "page_3"),
        ("happy/happy12.png", None),
        ("a/1833532.764.1200.210785.jpg", None),
        ("a/12_3.png", None),
    ],
)
def test_pages_in_file_names(path, page):
    assert page_of(path) == page


def test_distances_and_groups_of_copies():
    rng = np.random.default_rng(0)
    one, other = rng.random((5, 256)) < 0.5, rng.random((7, 256)) < 0.5
    assert (hamming(one, other) == (one[:, None] != other[None]).sum(axis=2)).all()
    copies = [
        Copy(first=0, second=3, how=""),
        Copy(first=3, second=5, distance=9, how=""),
    ]
    groups = group_copies(copies, 6)
    assert len(set(groups)) == 4 and groups[0] == groups[3] == groups[5]
    assert len(set(group_copies([], 4))) == 4


def test_a_missing_package_is_said_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert main(["audit", str(tmp_path / "not looked for")]) == 2
    error = capsys.readouterr().err
    assert 'imagehash: pip install "transferlab[audit]"' in error and error.count("\n") == 1


def test_errors_are_one_line_and_exit_code_2(extras, tmp_path, monkeypatch, capsys):
    folder = draw_colours(tmp_path / "colours", per_class=2)
    inside = [str(folder), "--out", str(folder / "out")]
    for arguments, message in (
        ([str(tmp_path / "no")], "cannot be read as a folder"),
        (inside, "nothing is written into"),
    ):
        assert main(["audit", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    monkeypatch.chdir(folder)
    assert main(["audit", "."]) == 2 and "nothing is written into" in capsys.readouterr().err
    assert sorted(path.name for path in Path(folder).iterdir()) == ["blue", "red"]


def test_a_class_with_one_image_is_audited_without_labels_and_leaks(extras, tmp_path, capsys):
    folder = draw_colours(tmp_path / "colours", per_class=2)
    (folder / "red" / "01.png").unlink()
    assert run_audit(folder, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "not checked: every class needs two images" in text and "not measured" in text


# ---- what is said ----------------------------------------------------------------------------


def read_findings(out):
    (table,) = (out / "result").glob("audit_findings_*.csv")
    return pd.read_csv(table, keep_default_na=False)


def read_summary(out):
    (path,) = (out / "result").glob("audit_summary_*.json")
    return read_record(path, AuditRecord)


def draw_split(folder, per_class=6):
    """Noise in two classes, in train, val and a labelled test."""
    for number, part in enumerate(("train", "val", "test")):
        draw_colours(folder / part, per_class)
        for path in (folder / part).rglob("*.png"):  # no picture twice
            rng = np.random.default_rng([number, int(path.stem), len(path.parent.name)])
            noise = rng.integers(0, 60, (5, 5, 3)).astype(np.uint8)
            coarse = Image.fromarray(noise).resize((40, 40), Image.Resampling.BICUBIC)
            Image.blend(Image.open(path), coarse, 0.7).save(path)
    return folder


def test_the_labelled_test_split_is_looked_at(extras, tmp_path, capsys):
    folder = draw_split(tmp_path / "parts")
    for part, image in (("train", "red/00.png"), ("val", "blue/01.png")):
        copied = folder / "test" / image.replace("0", "9")
        Image.open(folder / part / image).save(copied.with_suffix(".bmp"))
    assert run_audit(folder, tmp_path / "out") == 1
    found = read_findings(tmp_path / "out").query("kind == 'duplicate'")
    assert found["serious"].all() and len(found) == 2
    assert found["detail"].str.contains(r"across splits \((?:train|val), test\)").all()
    text = capsys.readouterr().out
    assert "train 12, val 12, test 14" in text and "  in test: blue 7, red 7\n" in text
    record = read_summary(tmp_path / "out")
    assert record.part_sizes["test"] == {"blue": 7, "red": 7} and record.data[0].n == 38


def test_no_finding_compares_a_thing_with_itself(extras, planted, tmp_path, capsys):
    """Over every kind: of defects in two splits, of equal classes, of one colour mode each, of one
    page an image."""
    folder = draw_colours(tmp_path / "colours")
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}{path.stem}_1_2_3_4.png"))  # its own page
    grey = draw_colours(tmp_path / "modes", per_class=1)
    Image.open(grey / "red" / "00.png").convert("L").save(grey / "red" / "00.png")
    tables = [planted[2]]
    texts = [planted[1]]
    for name in ("colours", "modes"):
        run_audit(tmp_path / name, tmp_path / "out" / name)
        tables.append(read_findings(tmp_path / "out" / name))
        texts.append(capsys.readouterr().out)
    for row in pd.concat(tables).itertuples():
        assert row.path != row.other_path
        for pattern in (
            r"labelled (.+), looks like (.+) \(",
            r"across classes \((.+?), (.+?)\)",
            r"across splits \((.+?), (.+?)\)",
            r"colour mode (.+), most are (.+)",
        ):
            for one, other in re.findall(pattern, row.detail):
                assert one != other, row
    for text in texts:
        for one, other in re.findall(r"(\S+) has \S+ times as many as (\S+);", text):
            assert one != other, text
    assert "balance: every class has 12 images" in texts[1]
    assert "most are" not in tables[2]["detail"].str.cat()
    assert "folds that keep each page" not in texts[1], "no two images share a page"


def test_a_label_that_is_the_likeliest_is_no_suspect(extras):
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9], [0.9, 0.1], [0.2, 0.8]])
    labels = np.array([0, 1, 1, 0, 0])
    suspects = find_suspects(labels, probabilities)
    assert 4 in suspects and all(probabilities[i].argmax() != labels[i] for i in suspects)


# ---- it survives -----------------------------------------------------------------------------


def test_awkward_names_and_files_do_no_harm(extras, tmp_path, capsys):
    folder = draw_colours(tmp_path / "colours", per_class=4)
    (folder / "red").rename(folder / "$x_{$")
    (folder / "$x_{$" / "00.png").rename(folder / "$x_{$" / "=cmd|' 'x.png")
    shutil.copy(folder / "$x_{$" / "=cmd|' 'x.png", folder / "blue" / "\x1b[31mtwo\nlines.png")
    os.mkfifo(folder / "blue" / "pipe.png")
    assert run_audit(folder, tmp_path / "out") == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text and r"blue/\x1b[31mtwo\nlines.png" in text
    (row,) = read_findings(tmp_path / "out").query("kind == 'duplicate'").itertuples()
    assert row.serious and "across classes ($x_{$, blue)" in row.detail
    (pipe,) = read_findings(tmp_path / "out").query("kind == 'unreadable'").itertuples()
    assert pipe.path == "blue/pipe.png"
    assert len([*(tmp_path / "out" / "img").glob("audit_2*.png")]) == 1


def test_results_are_written_before_they_are_printed(extras, tmp_path, monkeypatch):
    def fail(*_):
        raise BrokenPipeError

    folder = draw_colours(tmp_path / "colours", per_class=4)
    monkeypatch.setattr(audit, "describe_audit", fail)
    with pytest.raises(BrokenPipeError):
        run_audit(folder, tmp_path / "out")
    assert read_summary(tmp_path / "out").data[0].n == 8
    assert not [*(tmp_path / "out").glob(".*")], "the stamp is free again"


@pytest.mark.parametrize("refused", ["write_table", "plot_suspects", "write_text"])
def test_all_is_written_or_nothing(extras, tmp_path, monkeypatch, refused):
    def fail(*_):
        raise UserError("no space left")

    folder = draw_colours(tmp_path / "colours")
    shutil.move(folder / "red" / "00.png", folder / "blue" / "r.png")
    monkeypatch.setattr(record, refused, fail)
    with pytest.raises(UserError, match="no space"):
        run_audit(folder, tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_what_was_not_read_is_said_and_recorded(extras, tmp_path, capsys):
    folder = draw_split(tmp_path / "parts", per_class=4)
    draw_colours(folder / "unlabelled", per_class=2)
    run_audit(folder, tmp_path / "out")
    notes = read_summary(tmp_path / "out").data[0].notes
    text = capsys.readouterr().out
    assert any("unlabelled" in note for note in notes)
    assert all(f"note: {note}" in text for note in notes)


def test_a_file_that_vanishes_meanwhile_is_one_line(extras, tmp_path):
    folder = draw_colours(tmp_path / "colours", per_class=2)
    images = load_images(folder)
    (folder / "red" / "01.png").unlink()
    with pytest.raises(DataError, match=r"01\.png: No such file.*; audit the folder again"):
        take_fingerprints(images)


# ---- figures ---------------------------------------------------------------------------------


def boxes_of(figure):
    """The texts of a figure and where they are drawn."""
    figure.canvas.draw()
    texts = [text for axis in figure.axes for text in axis.findobj(plt.Text)]
    shown = [text for text in texts if text.get_text().strip() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


@pytest.mark.parametrize("classes", [2, 100])
def test_nothing_in_the_figure_runs_into_anything_else(classes, tmp_path):
    names = [f"고양이 whose name is long $x_{{{number}}} {number}" for number in range(classes)]
    leaks = [
        LeakTest(
            grouping=grouping,
            images=1234,
            groups=9,
            folds=5,
            random=(0.99, 1.0, 0.9),
            grouped=(0.9, 1.0, 0.8),
            drop=0.1,
            low=0.0,
            high=0.2,
        )
        for grouping in ("page", "near_duplicate")
    ]
    images = load_images(draw_colours(tmp_path / "colours", per_class=2))
    labels = torch.arange(classes).repeat_interleave(2)
    changed = {"classes": tuple(names), "labels": labels, "paths": ("a",) * (2 * classes)}
    result = AuditResult(
        image_set=replace(images, **changed),
        modes=("RGB",),
        findings=(Finding(kind="label", path="a", score=1, detail=""),),
        look_alikes=0,
        labels=None,
        leaks=tuple(leaks),
        features=CleanFeatures(
            values=np.zeros((1, 1)),
            augmentation=faces_augmentation(160),
            weights=WeightsInfo(
                name="m", timm_name="m", kind="file", label="file", source="", sha256=""
            ),
        ),
    )
    figure = plot_audit(result)
    boxes = boxes_of(figure)
    assert sum(text.startswith("고양이") for text, _ in boxes) == min(classes, NAMED)
    for (text, box), (other_text, other) in itertools.combinations(boxes, 2):
        assert not box.shrunk(0.95, 0.95).overlaps(other.shrunk(0.95, 0.95)), (text, other_text)
    assert not any(axis.get_legend() for axis in figure.axes)
    plt.close(figure)


def test_a_clipped_name_keeps_both_ends():
    assert clip("short") == "short"
    assert clip("class number 17 of many, 17", 12) == "class nu… 17"
    assert width_of(clip("고양이와 개와 늑대와 여우", 12)) <= 12
