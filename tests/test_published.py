"""Records published before schema 2 are read as today's, and nothing of what they say is lost."""

import json
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from transferlab.audit.record import AuditRecord
from transferlab.datasets import augmentation_named
from transferlab.errors import UserError
from transferlab.heldout import ComparisonRecord
from transferlab.metrics import Interval
from transferlab.published import read_record
from transferlab.records import (
    SCHEMA,
    BenchmarkRecord,
    RunRecord,
    StudyRecord,
    read_plain,
    to_json,
)
from transferlab.train import Settings
from transferlab.views import faces_augmentation, info_of, photos_augmentation

ROOT = Path(__file__).resolve().parents[1]


def committed():
    """Every record that is committed: all that report/runs.toml names."""
    entries = tomllib.loads((ROOT / "report/runs.toml").read_text(encoding="utf-8"))["files"]
    return [entry["path"] for entry in entries if entry["path"].endswith(".json")]


def kind_of(path):
    """The type of a committed record."""
    name = Path(path).name
    if "/benchmarks/" in path:
        return BenchmarkRecord
    if name.startswith("compare_"):
        return ComparisonRecord
    return AuditRecord if name.startswith("audit_") else StudyRecord


def values_in(plain):
    """All numbers and texts of plain values, names of what lies inside mappings among them."""
    if isinstance(plain, dict):
        parts = [*plain.values(), *plain]
    elif isinstance(plain, list | tuple):
        parts = plain
    else:
        return {plain}
    return set().union(*(values_in(part) for part in parts))


@pytest.fixture(params=committed())
def path(request):
    return request.param


def test_there_are_committed_records():
    assert len(committed()) >= 10


def test_nothing_that_a_record_says_is_lost(path):
    plain = json.loads((ROOT / path).read_text(encoding="utf-8"))
    record = read_record(ROOT / path, kind_of(path))
    said = set().union(*(values_in(value) for value in plain.values()))
    renamed = {"val"}  # among the transforms; it is "clean" today
    assert said - values_in(asdict(record)) <= renamed


def test_numbers_are_where_they_belong(path):
    """A record of schema 2 is its own plain values; one of schema 1 has them in today's places."""
    plain = json.loads((ROOT / path).read_text(encoding="utf-8"))
    record = read_record(ROOT / path, kind_of(path))
    assert record.stamp == Path(path).stem[-len("YYYYmmdd_HHMMSS") :]
    if "schema" in plain:
        for one in plain["data"]:
            one.setdefault("notes", [])  # fields that came later, with a default
        plain["machine"].setdefault("clean_precision", "torch.float32")
        assert json.loads(to_json(record)) == plain
        return
    assert record.schema == 1
    assert record.machine.threads == plain["threads"]
    assert record.machine.processor == plain["processor"]
    assert record.machine.versions == plain["versions"]
    check = {
        StudyRecord: check_study,
        ComparisonRecord: check_comparison,
        AuditRecord: check_audit,
        BenchmarkRecord: check_benchmark,
    }
    check[type(record)](record, plain)


def check_weights(record, weights):
    """The weights of {backbone: all that was said of them, or their source}."""
    assert [info.name for info in record.weights] == list(weights)
    for info in record.weights:
        told = weights[info.name]
        if isinstance(told, str):
            assert info.source == told and info.sha256 == ""
        else:
            assert told.items() <= asdict(info).items()


def check_data(record, plain):
    """The one dataset of a run."""
    (data,) = record.data
    assert (data.name, data.digest) == (plain["data"], plain["data_digest"])
    assert list(data.classes) == list(plain["classes"])
    assert data.synthetic == plain["synthetic"]
    rejected = [[one.path, one.reason] for one in data.rejected]
    assert rejected == plain.get("rejected", [])


def check_settings(record, plain):
    """The settings, with the rule of views that runs of schema 1 followed."""
    settings = dict(plain["settings"])
    assert record.seed == settings.pop("seed", plain.get("seed"))
    assert settings.items() <= asdict(record.settings).items()
    assert record.settings.rule == "cycle"


def check_study(record, plain):
    check_data(record, plain)
    check_settings(record, plain)
    check_weights(record, {plain["model"]: plain["weights"]})
    low, high = plain["accuracy_interval"]
    assert record.accuracy_interval == Interval(low=low, high=high)
    assert record.dataset.n == plain["n_train"] + plain["n_val"]
    assert list(record.val_labels) == plain["val_labels"]
    assert list(record.val_predictions) == plain["val_predictions"]
    assert record.timings == plain["timings"]
    assert record.seconds == sum(plain["timings"].values())
    assert record.machine.precision == plain["precision"]
    assert record.machine.device == plain["device"]
    assert (record.augmentation.train, record.augmentation.clean) == (
        plain["transforms"]["train"],
        plain["transforms"]["val"],
    )
    for name in ("best", "last", "highest"):
        assert plain[name].items() <= asdict(getattr(record, name)).items()
    same = ("split_hash", "n_train", "n_val", "parameters", "trainable_parameters", "macro_f1")
    hashes = ("frozen_hash_before", "frozen_hash_after")
    for name in (*same, *hashes, "epochs_run"):
        assert getattr(record, name) == plain[name]
    assert asdict(record.head) == plain["head"]
    assert list(record.mean) == plain["mean"] and list(record.std) == plain["std"]


def check_comparison(record, plain):
    check_data(record, plain)
    check_settings(record, plain)
    check_weights(record, plain["weights"])
    assert record.kind == "compare" and record.data[0].n == plain["n"]
    for name in ("folds", "repeats", "fold_hash"):
        assert getattr(record, name) == plain[name]
    assert record.machine.precision == plain["precision"]


def check_audit(record, plain):
    check_data(record, plain)
    check_weights(record, plain["weights"])
    assert record.kind == "audit" and record.data[0].n == plain["n"]
    assert record.class_sizes == plain["classes"]
    for name in ("counts", "serious", "out_of_fold_accuracy", "suspects"):
        assert getattr(record, name) == plain[name]
    assert asdict(record.planted) == plain["planted"]
    assert json.loads(json.dumps([asdict(leak) for leak in record.leaks])) == plain["leaks"]


def check_benchmark(record, plain):
    """What only a benchmark says stays as it was said; peers have settings of many systems."""
    named = plain.get("weights", {})
    if isinstance(named, dict):
        check_weights(record, {named["name"]: named} if "sha256" in named else named)
    else:
        assert [info.source for info in record.weights] == [named]
    told = plain.get("data")
    if isinstance(told, dict):
        assert {data.name: data.digest for data in record.data} == told
    if record.settings:
        check_settings(record, plain)
    for name, value in record.facts.items():
        assert value == plain[name]
    elsewhere = {"data", "data_name", "synthetic", "n", "weights", "precision", "machine"}
    elsewhere |= {"processor", "threads", "versions", "settings", "seed"}
    assert plain.keys() - elsewhere <= record.facts.keys()


def test_a_record_comes_back_as_it_was_written(path, tmp_path):
    """Of schema 2, with the rule of views that it has now."""
    kind = kind_of(path)
    settings = Settings(views=4, rule="clean+cycle")
    record = replace(read_record(ROOT / path, kind), schema=SCHEMA, settings=settings)
    written = tmp_path / "record.json"
    written.write_text(to_json(record), encoding="utf-8")
    assert read_record(written, kind) == record
    shared = read_record(written, RunRecord)
    assert (shared.kind, shared.data, shared.weights) == (record.kind, record.data, record.weights)


OLD_STUDY = {
    "model": "vit",
    "data": "d",
    "data_digest": "digest",
    "classes": ["a", "b"],
    "weights": {
        "name": "vit",
        "timm_name": "vit",
        "kind": "file",
        "source": "made up",
        "sha256": "f" * 64,
    },
    "settings": {"epochs": 1, "views": 30, "seed": 42},
    "n_train": 2,
    "n_val": 2,
    "split_hash": "s",
    "head": {"in_features": 4, "hidden": 2, "dropout": 0.5},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "parameters": 10,
    "trainable_parameters": 4,
    "frozen_hash_before": "h",
    "frozen_hash_after": "h",
    "val_labels": [0, 1],
    "val_predictions": [0, 1],
    "accuracy_interval": [0.3, 1.0],
    "macro_f1": 1.0,
    "timings": {"head": 1.0},
    "epochs_run": 1,
    **dict.fromkeys(
        ("best", "last", "highest"),
        {"epoch": 1, "train_loss": 0.5, "train_acc": 1.0, "val_loss": 0.5, "val_acc": 1.0},
    ),
}


def read_old_study(folder, train, clean):
    """A study record of schema 1 whose transforms print themselves so."""
    path = folder / "vit_summary_20260101_000000.json"
    path.write_text(json.dumps(OLD_STUDY | {"transforms": {"train": train, "val": clean}}))
    return read_record(path, StudyRecord)


@pytest.mark.parametrize("make", [faces_augmentation, photos_augmentation])
def test_transforms_that_are_ours_have_the_name_of_their_augmentation(make, tmp_path):
    """Whatever the folder is called; so a saved model can be fed again."""
    ours = info_of(make(size=224))
    record = read_old_study(tmp_path, ours.train, ours.clean)
    assert record.augmentation == record.dataset.augmentation == ours
    assert info_of(augmentation_named(record.augmentation)) == ours


def test_transforms_that_are_none_of_ours_have_no_name_and_are_refused(tmp_path):
    """What they print is kept as it was said."""
    ours = info_of(photos_augmentation(size=224))
    record = read_old_study(tmp_path, "Compose(Something)", ours.clean)
    info = record.augmentation
    assert (info.name, info.train, info.clean) == ("", "Compose(Something)", ours.clean)
    with pytest.raises(UserError, match="augmentation '' is not known here"):
        augmentation_named(info)


def test_what_is_no_record_is_refused(tmp_path):
    broken = tmp_path / "resnet50_summary_20260101_000000.json"
    broken.write_text("{")
    with pytest.raises(ValueError):
        read_record(broken, StudyRecord)
    broken.write_text(f'{{"schema": {SCHEMA}}}')
    with pytest.raises(TypeError):
        read_record(broken, StudyRecord)


def test_a_record_of_a_later_release_is_refused(tmp_path):
    newest = tmp_path / "resnet50_summary_20260101_000000.json"
    newest.write_text(json.dumps(OLD_STUDY | {"schema": SCHEMA + 1}))
    said = f"its schema is {SCHEMA + 1}, and this release reads up to {SCHEMA}"
    for read in (read_plain, lambda path: read_record(path, StudyRecord)):
        with pytest.raises(ValueError, match=said):
            read(newest)


@pytest.mark.parametrize("content", [b"\xb0\xa1", b"", b"[]", b"null"])
def test_a_file_that_is_no_record_is_told_as_a_value_error(content, tmp_path):
    path = tmp_path / "resnet50_summary_20260101_000000.json"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_plain(path)
