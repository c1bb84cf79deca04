"""A whole small study: what it writes, that it comes back the same, that nothing is overwritten."""

import json
import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from transferlab import plots
from transferlab.artifacts import (
    find_matching_run,
    load_model,
    new_stamp,
    predict_image,
    prepare_out_dir,
    save_figure,
    save_run,
)
from transferlab.backbones import split_at
from transferlab.errors import UserError
from transferlab.features import extract
from transferlab.metrics import accuracy_interval, mcnemar_p
from transferlab.study import freeze_backbone, train_study
from transferlab.train import HISTORY_COLUMNS, evaluate

TINY = "test_resnet.r160_in1k"


@pytest.fixture
def trained(study):
    frozen = freeze_backbone(TINY, study, weights="none")
    return frozen, *train_study(frozen, study, progress=False)


@pytest.fixture
def saved(trained, tmp_path):
    frozen, result, provenance = trained
    out = prepare_out_dir(tmp_path / "out")
    return out, save_run(out, frozen.model, result, provenance, stamp="20260101_000000")


def test_a_study_describes_itself(study, trained):
    frozen, result, provenance = trained
    assert provenance["frozen_hash_before"] == provenance["frozen_hash_after"]
    assert (
        provenance["weights"]["kind"] == "random"
        and provenance["n_train"] + provenance["n_val"] == 16
    )
    labels = study.image_set.labels[study.indices["val"]]
    assert provenance["val_labels"] == labels.tolist()
    right = sum(p == y for p, y in zip(provenance["val_predictions"], labels.tolist()))
    assert result.history[result.best_epoch - 1]["val_acc"] == right / len(labels)
    assert provenance["accuracy_interval"] == accuracy_interval(right, len(labels))
    assert all(seconds >= 0 for seconds in provenance["timings"].values())
    assert json.loads(json.dumps(provenance))["classes"] == ["disc", "square"]


def test_the_same_study_twice_gives_the_same_numbers(study, trained):
    frozen = freeze_backbone(TINY, study, weights="none")
    result, provenance = train_study(frozen, study, progress=False)
    assert provenance["val_predictions"] == trained[2]["val_predictions"]
    assert [row["train_loss"] for row in result.history] == [
        row["train_loss"] for row in trained[1].history
    ]


def test_a_run_writes_its_files_and_comes_back(study, trained, saved, image_folder):
    out, files = saved
    names = {kind: str(path.relative_to(out)) for kind, path in files.items()}
    assert names == {
        "model": f"model/{TINY}_best_20260101_000000.safetensors",
        "model_json": f"model/{TINY}_best_20260101_000000.json",
        "results": f"result/{TINY}_results_20260101_000000.csv",
        "summary": f"result/{TINY}_summary_20260101_000000.json",
    }
    assert list(pd.read_csv(files["results"]).columns) == HISTORY_COLUMNS
    summary = json.loads(files["summary"].read_text())
    assert {"best", "last", "highest", "versions", "processor", "threads", "stamp"} <= set(summary)
    model, described = load_model(files["model"])
    lower, upper = split_at(model, "features")
    x = extract(
        lower,
        study.blocks(0, study.indices["val"]),
        device=torch.device("cpu"),
        precision=torch.float32,
    )
    check = evaluate(upper, x, study.image_set.labels[study.indices["val"]])
    assert (
        check["predictions"].tolist() == summary["val_predictions"]
        and check["accuracy"] == summary["best"]["val_acc"]
    )
    answer = predict_image(
        model, described["classes"], study.views.val, image_folder / "disc" / "0.png"
    )
    assert sum(p for _, p in answer) == pytest.approx(1) and answer[0][1] >= answer[1][1]
    with pytest.raises((ValueError, OSError)):
        predict_image(model, described["classes"], study.views.val, out / "nothing.png")


def test_nothing_is_overwritten_and_nothing_half_written_stays(trained, saved, monkeypatch):
    out, files = saved
    before = {path: path.read_bytes() for path in files.values()}
    with pytest.raises(UserError, match="is not overwritten"):
        save_run(out, trained[0].model, trained[1], trained[2], stamp="20260101_000000")
    assert {path: path.read_bytes() for path in files.values()} == before
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            "transferlab.artifacts.save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        save_run(out, trained[0].model, trained[1], trained[2], stamp="20260101_000001")
    assert not list(out.rglob("*000001*")) and not [p for p in out.rglob(".*")]


def test_a_stamp_is_new_and_an_out_dir_writable(tmp_path):
    out = prepare_out_dir(tmp_path / "a" / "b")
    stamp = new_stamp(out)
    (out / "img" / f"x_{stamp}.png").write_text("")
    assert new_stamp(out) != stamp
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        prepare_out_dir(tmp_path / "file")


def test_damaged_models_are_one_clear_error(saved):
    out, files = saved
    text = files["model_json"].read_text()
    for damage in ("{", "{}", "[]"):
        files["model_json"].write_text(damage)
        with pytest.raises(UserError, match="missing or damaged"):
            load_model(files["model"])
    files["model_json"].write_text(text)
    files["model"].write_bytes(files["model"].read_bytes()[:-50])
    with pytest.raises(UserError, match="cut off"):
        load_model(files["model"])
    files["model_json"].unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        load_model(files["model"])


def test_only_a_matching_run_is_compared_with(trained, saved):
    out, _ = saved
    provenance = json.loads(json.dumps(trained[2]))
    assert find_matching_run(out, TINY, trained[2])["stamp"] == "20260101_000000"
    assert find_matching_run(out, "resnet50", provenance) is None
    for key, value in {
        "data_digest": "x",
        "split_hash": "x",
        "seed": 9,
        "precision": "x",
        "settings": {},
        "protocol": "x",
    }.items():
        assert find_matching_run(out, TINY, provenance | {key: value}) is None
    assert (
        find_matching_run(
            out, TINY, provenance | {"weights": provenance["weights"] | {"kind": "hub"}}
        )
        is None
    )
    save_run(out, trained[0].model, trained[1], trained[2], stamp="20260102_000000")
    (out / f"result/{TINY}_summary_20260103_000000.json").write_text("damaged")
    (out / f"result/{TINY}_summary_20260104_000000.json").write_text("{}")
    assert find_matching_run(out, TINY, provenance)["stamp"] == "20260102_000000"


def test_figures(study, trained, tmp_path):
    frozen, result, provenance = trained
    out = prepare_out_dir(tmp_path)
    summary = provenance | {"best": result.history[0]}
    drawn = [
        plots.plot_history(result, provenance, kind) for kind in ("loss", "accuracy", "combined")
    ]
    drawn += [
        plots.plot_confusion(
            torch.tensor(provenance["val_labels"]),
            torch.tensor(provenance["val_predictions"]),
            provenance,
        )
    ]
    drawn += [
        plots.plot_timings([summary, summary | {"model": "other"}]),
        plots.plot_models([summary, summary | {"model": "other"}]),
    ]
    drawn += [plots.plot_class_counts(study.image_set, study.indices)]
    drawn += [plots.plot_images([*study.image_set.images][:3], "abc", columns=3, heading="x")]
    for number, figure in enumerate(drawn):
        path = save_figure(figure, out, f"figure{number}", stamp="20260101_000000")
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
    assert accuracy_interval(k, n) == pytest.approx(
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
    frozen, result, provenance = trained
    out = prepare_out_dir(tmp_path / "out")
    files = save_run(
        out,
        frozen.model,
        result,
        provenance | {"model": "hf-hub:timm/tiny"},
        stamp="20260101_000000",
    )
    assert {path.parent.parent for path in files.values()} == {out} and all(
        path.is_file() for path in files.values()
    )
    assert load_model(files["model"])[1]["model"] == "hf-hub:timm/tiny"


def test_a_model_and_a_description_that_do_not_belong_together(saved):
    _, files = saved
    described = json.loads(files["model_json"].read_text())
    for change in (
        {"classes": ["a", "b", "c"]},
        {"head": described["head"] | {"hidden": 9}},
        {"timm_name": "test_vit.r160_in1k"},
    ):
        files["model_json"].write_text(json.dumps(described | change))
        with pytest.raises(UserError, match="does not fit"):
            load_model(files["model"])
    for change in (
        {"head": None},
        {"classes": None},
        {"head": {"in_features": 1}},
        {"timm_name": "no_such_model"},
    ):
        files["model_json"].write_text(json.dumps(described | change))
        with pytest.raises(UserError):
            load_model(files["model"])


def test_an_image_is_predicted_as_the_study_would(study, trained, saved, image_folder):
    model, described = load_model(saved[1]["model"])
    for index, predicted in zip(study.indices["val"].tolist(), trained[2]["val_predictions"]):
        answer = predict_image(
            model,
            described["classes"],
            study.views.val,
            image_folder / study.image_set.paths[index],
        )
        assert answer[0][0] == described["classes"][predicted]


def test_foreign_summaries_are_named_and_skipped(trained, saved, capsys):
    out, files = saved
    old = json.loads(files["summary"].read_text())
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
    assert (
        find_matching_run(out, TINY, json.loads(json.dumps(trained[2])))["stamp"]
        == "20260101_000000"
    )
    said = capsys.readouterr().out
    assert all(
        f"{TINY}_summary_202602{day}_000000.json" in said
        for day in [*range(10, 10 + len(foreign)), 28]
    )
