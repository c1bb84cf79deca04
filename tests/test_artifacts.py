"""A whole small study: what it writes, that it comes back the same, that nothing is overwritten."""

import json
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from transferlab import plots
from transferlab.artifacts import (
    ClassProbability,
    find_matching_run,
    load_model,
    new_stamp,
    predict_image,
    prepare_out_dir,
    rank_classes,
    save_figure,
    save_run,
    seconds_text,
)
from transferlab.backbones import split_at
from transferlab.errors import UserError
from transferlab.features import FROM_DISK, extract
from transferlab.metrics import Interval, accuracy_interval, mcnemar_p
from transferlab.records import SCHEMA, StudyRecord, from_plain, read_plain, to_json
from transferlab.study import freeze_backbone, train_study
from transferlab.train import Settings, evaluate
from transferlab.views import faces_augmentation, photos_augmentation

TINY = "test_resnet.r160_in1k"
STAMP = "20260101_000000"
COLUMNS = [  # of the table of epochs
    "epoch",
    "train_loss",
    "train_acc",
    "train_loss_clean",
    "train_acc_clean",
    "val_loss",
    "val_acc",
    "seconds",
]


@pytest.fixture
def trained(study):
    frozen = freeze_backbone(TINY, study, weights="none")
    return frozen, *train_study(frozen, study, progress=False)


@pytest.fixture
def saved(trained, tmp_path):
    frozen, result, record = trained
    out = prepare_out_dir(tmp_path / "out")
    return out, save_run(out, frozen.model, result, record, stamp=STAMP)


def test_a_study_describes_itself(study, trained):
    frozen, result, record = trained
    assert record.frozen_hash_before == record.frozen_hash_after
    assert record.backbone.kind == "random" and record.n_train + record.n_val == 16
    labels = study.image_set.labels[study.fold.val]
    assert record.val_labels == tuple(labels.tolist())
    right = sum(p == y for p, y in zip(record.val_predictions, labels.tolist()))
    assert result.history[result.best_epoch - 1].val_acc == right / len(labels)
    assert record.accuracy_interval == accuracy_interval(right, len(labels))
    assert all(seconds >= 0 for seconds in record.timings.values())
    assert json.loads(to_json(record))["data"][0]["classes"] == ["disc", "square"]


def test_the_same_study_twice_gives_the_same_numbers(study, trained):
    frozen = freeze_backbone(TINY, study, weights="none")
    result, record = train_study(frozen, study, progress=False)
    assert record.val_predictions == trained[2].val_predictions
    assert [row.train_loss for row in result.history] == [
        row.train_loss for row in trained[1].history
    ]


def test_a_run_writes_its_files_and_comes_back(study, trained, saved, image_folder):
    out, files = saved
    names = [str(path.relative_to(out)) for path in files.all()]
    assert names == [
        f"model/{TINY}_best_{STAMP}.safetensors",
        f"model/{TINY}_best_{STAMP}.json",
        f"result/{TINY}_results_{STAMP}.csv",
        f"result/{TINY}_summary_{STAMP}.json",
    ]
    assert list(pd.read_csv(files.results).columns) == COLUMNS
    summary = from_plain(StudyRecord, read_plain(files.summary))
    assert summary == replace(trained[2], stamp=STAMP)
    assert files.description.read_text() == files.summary.read_text()
    wanted = {"best", "last", "highest", "machine", "stamp", "schema", "kind"}
    assert wanted <= set(json.loads(files.summary.read_text()))
    again = load_model(files.model)
    assert again.record == summary
    lower, upper = split_at(again.model, "features")
    fp32 = replace(study.machine, device=torch.device("cpu"), precision=torch.float32)
    x = extract(
        lower,
        study.renderer.blocks(0, study.fold.val),
        machine=fp32,
        precision=torch.float32,
    )
    check = evaluate(upper, x, study.image_set.labels[study.fold.val])
    assert tuple(check.predictions.tolist()) == summary.val_predictions
    assert check.accuracy == summary.best.val_acc
    augmentation = study.renderer.augmentation
    answer = predict_image(again, augmentation, image_folder / "disc" / "0.png")
    assert sum(one.probability for one in answer) == pytest.approx(1)
    assert answer[0].probability >= answer[1].probability
    with pytest.raises((ValueError, OSError)):
        predict_image(again, augmentation, out / "nothing.png")


def test_nothing_is_overwritten_and_nothing_half_written_stays(trained, saved, monkeypatch):
    out, files = saved
    before = {path: path.read_bytes() for path in files.all()}
    frozen, result, record = trained
    with pytest.raises(UserError, match="is not overwritten"):
        save_run(out, frozen.model, result, record, stamp=STAMP)
    assert {path: path.read_bytes() for path in files.all()} == before

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("transferlab.artifacts.save_file", interrupt)
        save_run(out, frozen.model, result, record, stamp="20260101_000001")
    assert not list(out.rglob("*000001*")) and not list(out.rglob(".*"))


def test_a_stamp_is_new_and_an_out_dir_writable(tmp_path):
    out = prepare_out_dir(tmp_path / "a" / "b")
    stamp = new_stamp(out)
    (out / "img" / f"x_{stamp}.png").write_text("")
    assert new_stamp(out) != stamp
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        prepare_out_dir(tmp_path / "file")


def test_damaged_models_are_one_clear_error(saved):
    _, files = saved
    text = files.description.read_text()
    for damage in ("{", "{}", "[]"):
        files.description.write_text(damage)
        with pytest.raises(UserError, match="missing or damaged"):
            load_model(files.model)
    files.description.write_text(text)
    files.model.write_bytes(files.model.read_bytes()[:-50])
    with pytest.raises(UserError, match="cut off"):
        load_model(files.model)
    files.description.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        load_model(files.model)


def with_augmentation(record, info):
    """A record whose views were drawn otherwise."""
    return replace(record, data=(replace(record.dataset, augmentation=info),))


def test_only_a_matching_run_is_compared_with(trained, saved):
    out, _ = saved
    frozen, result, record = trained
    assert find_matching_run(out, TINY, record).stamp == STAMP
    assert find_matching_run(out, "resnet50", record) is None
    others = [
        replace(record, data=(replace(record.dataset, digest="x"),)),
        replace(record, split_hash="x"),
        replace(record, seed=9),
        replace(record, machine=replace(record.machine, precision="x")),
        replace(record, settings=Settings(epochs=99)),
        with_augmentation(record, replace(record.augmentation, version=9)),
        replace(record, weights=(replace(record.backbone, kind="hub"),)),
    ]
    for other in others:
        assert find_matching_run(out, TINY, other) is None
    save_run(out, frozen.model, result, record, stamp="20260102_000000")
    (out / f"result/{TINY}_summary_20260103_000000.json").write_text("damaged")
    (out / f"result/{TINY}_summary_20260104_000000.json").write_text("{}")
    assert find_matching_run(out, TINY, record).stamp == "20260102_000000"


def test_runs_whose_augmentation_has_no_name_never_match(trained, tmp_path):
    """Not even themselves: what prints the same may draw something else."""
    frozen, result, record = trained
    nameless = with_augmentation(record, replace(record.augmentation, name=""))
    unknown = with_augmentation(record, None)
    for number, one in enumerate((nameless, unknown)):
        out = prepare_out_dir(tmp_path / str(number))
        save_run(out, frozen.model, result, one, stamp=STAMP)
        for other in (one, record):
            assert find_matching_run(out, TINY, other) is None


def test_a_record_of_a_later_release_is_refused(trained, saved, capsys):
    out, files = saved
    later = json.loads(files.summary.read_text()) | {"schema": SCHEMA + 1}
    newest = out / f"result/{TINY}_summary_20260301_000000.json"
    for path in (newest, files.description):
        path.write_text(json.dumps(later))
    said = f"its schema is {SCHEMA + 1}, and this release reads up to {SCHEMA}"
    with pytest.raises(ValueError, match=said):
        read_plain(newest)
    with pytest.raises(UserError, match=said):
        load_model(files.model)
    assert find_matching_run(out, TINY, trained[2]).stamp == STAMP
    printed = capsys.readouterr().out
    assert f"skipped {newest.name}" in printed and said in printed


def test_a_figure_names_weights_by_their_label(trained):
    _, result, record = trained
    source = "file resnet.pth (a source that is long and is told in full elsewhere)"
    pretrained = replace(record.backbone, kind="file", label="file resnet.pth", source=source)
    other = replace(record, weights=(pretrained,))
    assert plots.describe_run(other).endswith("| weights: file resnet.pth")
    assert plots.describe_run(record).endswith("| weights: random")
    figure = plots.plot_models([record, other])
    (axis,) = figure.axes
    labels = [tick.get_text() for tick in axis.get_yticklabels()]
    assert labels == [f"{TINY}\nrandom", f"{TINY}\nfile resnet.pth"]
    assert [bool(bar.get_hatch()) for bar in axis.patches] == [True, False]
    assert "hatched: random weights, no transfer" in axis.get_xlabel()
    plt.close(figure)


def test_figures(study, trained, tmp_path):
    _, result, record = trained
    out = prepare_out_dir(tmp_path)
    other = replace(record, weights=(replace(record.backbone, name="other"),))
    drawn = [plots.plot_history(result, record, kind) for kind in ("loss", "accuracy", "combined")]
    drawn += [
        plots.plot_confusion(
            torch.tensor(record.val_labels), torch.tensor(record.val_predictions), record
        )
    ]
    drawn += [plots.plot_timings([record, other]), plots.plot_models([record, other])]
    drawn += [plots.plot_class_counts(study.image_set, study.fold)]
    drawn += [plots.plot_images([*study.image_set.images][:3], "abc", columns=3, heading="x")]
    for number, figure in enumerate(drawn):
        path = save_figure(figure, out, f"figure{number}", stamp=STAMP)
        assert path.read_bytes().startswith(b"\x89PNG")
        plt.close(figure)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(case):
    k, n = case
    z, p = 1.959963984540054, k / n
    centre, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    interval = accuracy_interval(k, n)
    assert isinstance(interval, Interval)
    assert (interval.low, interval.high) == pytest.approx(
        (max(0, centre - half), min(1, centre + half)), abs=1e-9
    )


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs():
    a = torch.tensor([True] * 8 + [False] * 19 + [True] * 30)
    b = torch.tensor([False] * 8 + [True] * 19 + [True] * 30)
    assert (
        mcnemar_p(a, b) == pytest.approx(binomtest(8, 27).pvalue) == pytest.approx(0.0522, abs=1e-4)
    )
    assert mcnemar_p(a, a) == 1.0


def test_a_name_with_slashes_is_a_file_name(trained, tmp_path):
    frozen, result, record = trained
    out = prepare_out_dir(tmp_path / "out")
    name = "hf-hub:timm/tiny"
    renamed = replace(record, weights=(replace(record.backbone, name=name),))
    files = save_run(out, frozen.model, result, renamed, stamp=STAMP)
    assert {path.parent.parent for path in files.all()} == {out}
    assert all(path.is_file() for path in files.all())
    assert load_model(files.model).record.model == name
    assert find_matching_run(out, name, renamed).stamp == STAMP


def test_a_model_and_a_description_that_do_not_belong_together(saved):
    _, files = saved
    described = json.loads(files.description.read_text())

    def changed(part, **change):
        """The description with one entry of a list, or a mapping, changed."""
        value = described[part]
        new = [value[0] | change] if isinstance(value, list) else value | change
        return described | {part: new}

    for other in (
        changed("data", classes=["a", "b", "c"]),
        changed("head", hidden=9),
        changed("weights", timm_name="test_vit.r160_in1k"),
    ):
        files.description.write_text(json.dumps(other))
        with pytest.raises(UserError, match="does not fit"):
            load_model(files.model)
    for other in (
        described | {"head": None},
        described | {"data": None},
        described | {"data": []},
        described | {"timings": "long"},
        changed("data", classes=None),
        described | {"head": {"in_features": 1}},
        changed("weights", timm_name="no_such_model"),
    ):
        files.description.write_text(json.dumps(other))
        with pytest.raises(UserError):
            load_model(files.model)


def test_an_image_is_predicted_as_the_study_would(study, trained, saved, image_folder):
    again = load_model(saved[1].model)
    for index, predicted in zip(study.fold.val.tolist(), trained[2].val_predictions):
        path = image_folder / study.image_set.paths[index]
        answer = predict_image(again, study.renderer.augmentation, path)
        assert answer[0].name == again.record.dataset.classes[predicted]


def test_a_model_is_fed_through_the_augmentation_that_it_names_alone(saved, image_folder):
    again, path = load_model(saved[1].model), image_folder / "disc" / "0.png"
    faces = faces_augmentation(32)
    others = (photos_augmentation(32), faces_augmentation(64), replace(faces, version=2))
    for other in (*others, replace(faces, name="")):
        with pytest.raises(UserError, match="another augmentation: give faces, version 1, 32 px"):
            predict_image(again, other, path)
    expected = predict_image(again, faces, path)
    printing = replace(faces, train=photos_augmentation(32).train)  # as another torchvision may
    assert printing.info() != faces.info()
    assert predict_image(again, printing, path) == expected


def test_a_model_of_an_augmentation_without_a_name_is_fed_through_none(saved, image_folder):
    again, path = load_model(saved[1].model), image_folder / "disc" / "0.png"
    faces = faces_augmentation(32)
    for info in (replace(faces.info(), name=""), None):
        nameless = replace(again, record=with_augmentation(again.record, info))
        for augmentation in (faces, replace(faces, name="")):
            with pytest.raises(UserError, match="an augmentation that has no name"):
                predict_image(nameless, augmentation, path)


def test_classes_are_ranked_by_their_probability():
    ranked = rank_classes(("a", "b", "c"), torch.tensor([0.0, 2.0, 1.0]))
    assert [one.name for one in ranked] == ["b", "c", "a"]
    assert isinstance(ranked[0], ClassProbability)
    assert sum(one.probability for one in ranked) == pytest.approx(1)


def test_foreign_summaries_are_named_and_skipped(trained, saved, capsys):
    out, files = saved
    old = json.loads(files.summary.read_text())
    foreign = [
        b"\xb0\xa1",
        b"",
        b"[]",
        b"null",
        json.dumps(old | {"weights": "hub"}).encode(),
        json.dumps({"seed": 1}).encode(),
    ]
    for day, content in enumerate(foreign, start=10):
        (out / f"result/{TINY}_summary_202602{day}_000000.json").write_bytes(content)
    (out / f"result/{TINY}_summary_20260228_000000.json").mkdir()
    assert find_matching_run(out, TINY, trained[2]).stamp == STAMP
    said = capsys.readouterr().out
    assert all(
        f"{TINY}_summary_202602{day}_000000.json" in said
        for day in [*range(10, 10 + len(foreign)), 28]
    )


def test_the_seconds_of_a_run_say_when_features_came_from_disk(trained):
    record = replace(trained[2], timings={"head": 2.2, "training views": 3.3})
    assert seconds_text(record) == "6"
    kept = replace(record, timings=record.timings | {FROM_DISK: 0.1})
    assert seconds_text(kept) == "6 (features from disk)"
