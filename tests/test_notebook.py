"""What a notebook holds beside the shared core: pinned to the study's own loop, safe to run again,
and read back into the study's record."""

import copy
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import types
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib import font_manager
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score
from torchvision.transforms import v2

from transferlab import described, notebook, plots, pretrained
from transferlab.artifacts import sweep_stamps
from transferlab.backbones import count_parameters, create_backbone, make_head
from transferlab.commands.run import NOTEBOOKS, read_records, summarise
from transferlab.data import load_images, split_images
from transferlab.described import (
    Given,
    load_model,
    read_description,
    study_record,
    write_summary,
)
from transferlab.errors import UserError, WeightsError
from transferlab.files import LARGEST_JSON
from transferlab.machine import this_machine
from transferlab.metrics import accuracy_interval
from transferlab.notebook import (
    FrozenBackbone,
    NotYet,
    copy_to_drive,
    from_colab,
    load_body,
    right_images,
    save_run,
    summarise_run,
    train_head,
)
from transferlab.pretrained import state_hash
from transferlab.records import (
    Epoch,
    HeadInfo,
    StudyRecord,
    data_info,
    from_plain,
    hash_of_split,
    read_plain,
    to_json,
)
from transferlab.study import Study, freeze_backbone, train_study
from transferlab.train import Settings, evaluate
from transferlab.views import Renderer, faces_augmentation, photos_augmentation, render_view

RESNET = "test_resnet.r160_in1k"
EFFICIENTNET = "test_efficientnet.r160_in1k"
CLASSES = ("$1", "a_b $x_{", "행복")  # two of them matplotlib could take for formulas
SEED = 3
FACES = faces_augmentation(32)
TRAIN, VAL = 39, 21  # of 60 images
SIZES = {"hidden": 8, "dropout": 0.4}


@pytest.fixture(scope="module")
def drawn_folder(tmp_path_factory):
    """20 drawn pictures of each of three classes, with the mark of a stand-in, and a file that is
    no image."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "SYNTHETIC").write_text("drawn by a test\n")
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for i in range(20):
            image = Image.new("RGB", (40, 36 + i % 3), (9 * i, 70 * number, 90))
            ImageDraw.Draw(image).regular_polygon((20, 18, 12), 3 + number, 11 * i, fill="white")
            image.save(folder / name / f"{i}.png")
    (folder / "$1" / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def drawn(drawn_folder):
    return load_images(drawn_folder)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing kept from another test; on the CPU, where all is to the bit."""
    monkeypatch.setattr(FrozenBackbone, "kept", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with plt.rc_context():
        yield
    plt.close("all")


def freeze(images, weights="none", *, name=RESNET, augmentation=FACES, seed=SEED):
    what = {"image_set": images, "augmentation": augmentation, "seed": seed}
    return FrozenBackbone(name, name, weights, **what)


def silent(row):
    """Reports nothing."""


def train(frozen, *, epochs=6, views=2, lr=1e-2, report=silent, **more):
    return train_head(frozen, epochs=epochs, views=views, lr=lr, report=report, **(SIZES | more))


def without_seconds(run):
    return run.history.drop(columns="seconds").reset_index().to_dict("records")


def assert_same_run(one, other):
    """All that a run has come to, to the bit; not its seconds."""
    assert without_seconds(one) == without_seconds(other)
    assert one.best == other.best and one.settings == other.settings
    assert torch.equal(one.logits, other.logits)
    states = one.head.state_dict(), other.head.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def watch(frozen):
    """Counts the images that the frozen part computes, a number a call."""
    seen = []
    frozen.lower.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    return seen


# ---- what no cell has made yet ------------------------------------------------------------------


def test_what_is_not_there_yet_says_which_cell_makes_it():
    with pytest.raises(UserError) as told:
        print(NotYet("먼저 ‘3. 모델’을 실행하세요.").labels)
    assert told.value.remedy == "먼저 ‘3. 모델’을 실행하세요."
    shown = told.value._render_traceback_()
    assert shown == ["먼저 ‘3. 모델’을 실행하세요.", f"error: {told.value}"]
    assert UserError.remedy == ""  # of this one alone


def test_what_is_not_there_yet_tells_it_to_whoever_uses_it(drawn):
    nothing = NotYet("run the cell above")
    for use in (
        lambda: split_images(nothing, seed=1),
        lambda: train(nothing),
        lambda: plots.plot_curves(nothing),
        lambda: freeze(nothing),
        lambda: save_run(nothing, "never written", {}),
    ):
        with pytest.raises(UserError) as told:
            use()
        assert told.value.remedy == "run the cell above"


def test_what_is_not_there_yet_can_be_shown():
    """IPython asks every object for `_repr_html_` and more."""
    nothing = NotYet("run the cell above")
    for name in ("_repr_html_", "_ipython_display_", "_repr_mimebundle_", "__array__"):
        assert not hasattr(nothing, name)
    shown, _ = DisplayFormatter().format(nothing)
    assert "NotYet" in shown["text/plain"]
    assert isinstance(copy.copy(nothing), NotYet)


# ---- weights ------------------------------------------------------------------------------------


def same_tensors(body, state):
    """Whether a body holds the tensors of a file, all but its classifier's."""
    held = body.state_dict()
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    return held.keys() == rest.keys() and all(torch.equal(held[key], rest[key]) for key in held)


def test_weights_come_from_a_file_or_from_a_folder_by_their_name(tiny_file):
    """Of another number of classes than timm's: the body has none."""
    expected = {"kind": "file", "label": tiny_file.name}
    expected |= {"name": "test_resnet", "timm_name": RESNET}
    state = load_file(tiny_file)
    assert len(state["fc.weight"]) == 5
    for place in (tiny_file, tiny_file.parent):
        body, told = load_body("test_resnet", RESNET, str(place))
        assert tiny_file.name in told.pop("source")
        assert told == expected and same_tensors(body, state)
        assert body.num_classes == 0


def test_a_note_beside_the_weights_says_what_they_are(tiny_file):
    note = tiny_file.with_suffix(".json")
    note.write_text(json.dumps({"source": "그린 것, at 64 px", "label": "drawn"}), encoding="utf-8")
    _, told = load_body("test_resnet", RESNET, str(tiny_file.parent))
    assert (told["source"], told["label"], told["kind"]) == ("그린 것, at 64 px", "drawn", "file")
    note.write_text(json.dumps({"kind": "package"}))
    _, told = load_body("test_resnet", RESNET, str(tiny_file))
    assert (told["kind"], told["label"]) == ("package", tiny_file.name)
    note.write_text("{")
    with pytest.raises(WeightsError, match="^no weights for test_resnet"):
        load_body("test_resnet", RESNET, str(tiny_file))


def test_weights_in_the_users_home_and_in_a_pickle_of_tensors(tiny_file, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_file.parent))
    state = load_file(tiny_file)
    torch.save(state, tiny_file.with_name("mine.pth"))
    body, told = load_body("test_resnet", RESNET, "~/mine.pth")
    assert same_tensors(body, state) and "mine.pth" in told["source"]


def test_random_weights_are_the_same_each_time():
    one, told = load_body("a", RESNET, "none")
    torch.rand(3)
    other, _ = load_body("b", RESNET, "none")
    assert state_hash(one) == state_hash(other)
    assert (told["kind"], told["label"]) == ("random", "random")


def test_weights_that_are_not_to_be_had_are_one_line(tiny_file, tmp_path):
    text = tmp_path / "text.safetensors"
    text.write_text("these are\nno weights")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_file.read_bytes()[:-60])
    half = tmp_path / "half.safetensors"
    state = load_file(tiny_file)
    save_file({key: state[key] for key in list(state)[:-9]}, half)
    torch.save({"model": print}, tmp_path / "code.pth")
    places = [text, cut, half, tmp_path / "code.pth", tmp_path / "nothing", tmp_path]
    for place in places:
        with pytest.raises(WeightsError) as told:
            load_body("test_resnet", RESNET, str(place))
        assert str(told.value).startswith("no weights for test_resnet")
        assert "\n" not in str(told.value)
    for timm_name in (EFFICIENTNET, "no_such_model"):
        with pytest.raises(WeightsError, match="no weights for other"):
            load_body("other", timm_name, str(tiny_file))


def test_auto_is_the_hub(hub, tiny_file):
    hub.files[f"/timm/{RESNET}/resolve/main/model.safetensors"] = tiny_file.read_bytes()
    body, told = load_body("resnet", RESNET, "auto")
    assert same_tensors(body, load_file(tiny_file))
    repository = f"timm/{RESNET}"
    assert told["source"] == f"hub: {repository}"
    assert (told["kind"], told["label"]) == ("hub", repository)
    hub.files.clear()  # from its cache
    assert same_tensors(load_body("resnet", RESNET, "auto")[0], load_file(tiny_file))
    with pytest.raises(WeightsError, match="^no weights for other"):
        load_body("other", EFFICIENTNET, "auto")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("[Errno 101]\n  Network is unreachable")

    gone = types.SimpleNamespace(
        try_to_load_from_cache=lambda **place: None,
        hf_hub_url=lambda **place: "https://example.org",
        get_hf_file_metadata=unreachable,
    )
    monkeypatch.setattr(pretrained, "hub", gone)
    said = "^no weights for resnet.*Errno 101.*Network is unreachable"
    with pytest.raises(WeightsError, match=said) as told:
        load_body("resnet", RESNET, "auto")
    assert "\n" not in str(told.value)


# ---- the training, pinned to the study's --------------------------------------------------------


@pytest.mark.parametrize("patience", [0, 1])
@pytest.mark.parametrize("views", [0, 2])
def test_a_notebooks_training_is_the_studys(drawn, tiny_file, views, patience):
    """The same history, best epoch, head and answers, to the bit. The library folds BatchNorm into
    the convolutions, which rounds (bounded in tests/test_backbones.py); here it does not."""
    settings = Settings(epochs=12, views=views, patience=patience, lr=0.1, **SIZES)
    study = Study(
        renderer=Renderer(drawn, FACES, seed=SEED),
        fold=split_images(drawn, seed=SEED),
        settings=settings,
        machine=replace(this_machine(), device="cpu", precision="torch.float32"),
        seed=SEED,
    )
    reference = freeze_backbone(RESNET, study, weights=str(tiny_file))
    unfolded = replace(reference.features, lower=reference.lower)
    reference = replace(reference, features=unfolded)
    expected = train_study(reference, study)

    frozen = freeze(drawn, str(tiny_file))
    frozen.precision = torch.float32
    run = train(frozen, epochs=12, views=views, patience=patience, lr=0.1)
    rows = [asdict(replace(row, seconds=None)) for row in expected.history]
    mine = [asdict(Epoch(**row)) for row in without_seconds(run)]
    assert mine == rows
    assert run.best == expected.best_epoch < 12
    assert (len(rows) < 12) == bool(patience)
    for state in (run.head.state_dict(), reference.upper.state_dict()):
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.state.items())
    val = study.fold.val
    scored = evaluate(reference.upper, reference.features.clean[val], study.labels(val))
    assert torch.equal(run.logits, scored.logits)
    assert frozen.hash == reference.frozen_hash == state_hash(frozen.lower)


def test_random_views_alone_are_computed_in_the_machines_precision(drawn):
    exact = freeze(drawn)
    exact.precision = torch.float32
    fp32 = [exact.features("train", view) for view in (0, 1)]
    FrozenBackbone.kept.clear()
    rounded = freeze(drawn)
    rounded.precision = torch.bfloat16
    bf16 = [rounded.features("train", view) for view in (0, 1)]
    assert torch.equal(fp32[0], bf16[0]) and not torch.equal(fp32[1], bf16[1])
    assert torch.allclose(fp32[1], bf16[1], atol=0.1)
    assert all(features.dtype == torch.float32 for features in (*fp32, *bf16))


def test_running_a_cell_again_gives_the_same(drawn, tiny_file):
    frozen = freeze(drawn, str(tiny_file))
    run = train(frozen)
    torch.rand(3)
    assert_same_run(train(frozen), run)
    FrozenBackbone.kept.clear()
    assert_same_run(train(freeze(drawn, str(tiny_file))), run)
    assert state_hash(frozen.lower) == frozen.hash


def test_an_edited_transform_is_drawn_anew_though_it_prints_the_same(drawn):
    def with_step(step):
        steps = v2.Compose([v2.Resize((32, 32)), step])
        return freeze(drawn, augmentation=replace(FACES, clean=steps)).features("val")

    bright = with_step(v2.Lambda(lambda image: image))
    dark = with_step(v2.Lambda(lambda image: image // 4))
    assert not torch.equal(bright, dark)
    often = with_step(v2.RandomApply([v2.RandomInvert(1.0)], p=1.0))
    never = with_step(v2.RandomApply([v2.RandomInvert(1.0)], p=0.0))
    assert not torch.equal(often, never)


def test_a_training_that_is_interrupted_runs_again_as_if_it_had_not(drawn):
    reported = []

    def interrupt(row):
        reported.append(row["epoch"])
        if len(reported) == 3:
            raise KeyboardInterrupt

    expected = train(freeze(drawn))
    FrozenBackbone.kept.clear()
    frozen = freeze(drawn)
    with pytest.raises(KeyboardInterrupt):
        train(frozen, report=interrupt)
    assert reported == [1, 2, 3]
    assert_same_run(train(frozen), expected)


def test_features_that_are_interrupted_are_not_kept_by_half(drawn):
    expected = train(freeze(drawn))
    FrozenBackbone.kept.clear()
    frozen = freeze(drawn)

    def interrupt(module, given):
        if len(seen) > 9:
            raise KeyboardInterrupt

    seen = watch(frozen)
    hook = frozen.lower.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(frozen)
    hook.remove()
    assert_same_run(train(frozen), expected)


def test_settings_act_at_once_and_what_was_drawn_is_kept(drawn):
    frozen = freeze(drawn)
    seen = watch(frozen)
    assert len(train(frozen, epochs=5, views=2).history) == 5
    assert sum(seen) == VAL + 3 * TRAIN and max(seen) == 8
    seen.clear()
    assert len(train(frozen, epochs=2, views=2).history) == 2
    train(frozen, epochs=6, views=1)
    train(frozen, epochs=6, views=2, lr=1e-3, hidden=4)
    assert seen == []
    train(frozen, epochs=4, views=9)  # of nine views those that epochs ask for
    assert sum(seen) == TRAIN
    seen.clear()
    train(frozen, epochs=6, views=4)
    assert sum(seen) == TRAIN
    other = train(frozen, epochs=6, views=2), train(frozen, epochs=6, views=0)
    assert without_seconds(other[0]) != without_seconds(other[1])


def test_views_are_drawn_when_an_epoch_asks_for_them(drawn):
    frozen = freeze(drawn)
    seen = watch(frozen)
    counts = []
    train(frozen, epochs=4, views=2, report=lambda row: counts.append(sum(seen)))
    clean = TRAIN + VAL
    assert counts == [clean, clean + TRAIN, clean + 2 * TRAIN, clean + 2 * TRAIN]


def test_running_the_models_cell_again_computes_nothing_anew(drawn, drawn_folder):
    train(freeze(drawn))
    again = freeze(load_images(drawn_folder), augmentation=faces_augmentation(32))
    seen = watch(again)
    train(again)
    assert seen == []


def test_other_weights_seeds_images_and_transforms_are_other_features(
    drawn, drawn_folder, tiny_file, tmp_path
):
    shutil.copytree(drawn_folder, tmp_path / "changed")
    changed = tmp_path / "changed" / "행복" / "0.png"
    Image.open(changed).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(changed)
    turned = v2.Compose([*FACES.train.transforms[:2], v2.RandomRotation(80)])
    rest = freeze(drawn)
    views = rest.features("train", 1)
    clean = rest.features("train")
    for other in (
        freeze(drawn, str(tiny_file)),
        freeze(drawn, name=EFFICIENTNET),
        freeze(drawn, seed=4),
        freeze(load_images(tmp_path / "changed")),
        freeze(drawn, augmentation=faces_augmentation(48)),
    ):
        seen = watch(other)
        found = other.features("train", 1), other.features("train")
        assert sum(seen) == 2 * TRAIN
        for one, mine in zip(found, (views, clean)):
            assert one.shape != mine.shape or not torch.equal(one, mine)
    edited = freeze(drawn, augmentation=replace(FACES, train=turned))
    seen = watch(edited)
    assert not torch.equal(edited.features("train", 1), views)
    assert torch.equal(edited.features("train"), clean)  # whose transform is the same
    assert sum(seen) == TRAIN
    assert torch.equal(rest.features("train", 1), views)


def test_a_view_is_what_it_says(drawn):
    """Rendered and computed by hand, a block of eight at a time."""
    frozen = freeze(drawn)
    frozen.precision = torch.float32
    for part, view, transform in (("val", 0, FACES.clean), ("train", 2, FACES.train)):
        index = getattr(frozen.fold, part)
        images = render_view(drawn, transform, view=view, seed=SEED, indices=index)
        with torch.no_grad():
            expected = torch.cat([frozen.lower(block) for block in images.split(8)])
        assert torch.allclose(frozen.features(part, view), expected, atol=1e-5)
        assert torch.equal(frozen.labels(part), drawn.labels[index])
        assert frozen.features(part, view, seconds=True) > 0


def test_a_backbone_says_what_it_was_asked_for(drawn, tiny_file):
    frozen = freeze(drawn, str(tiny_file))
    assert frozen.asked == (str(tiny_file), drawn.digest, SEED, repr(frozen.augmentation))
    assert frozen.caption == f"{RESNET} | {drawn.name} | weights: {tiny_file.name}"
    assert not any(parameter.requires_grad for parameter in frozen.lower.parameters())
    head = make_head(frozen.lower.body.head_hidden_size, 3, seed=SEED)
    for one, other in zip(frozen.new_head().parameters(), head.parameters()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"views": -1}, {"lr": 1e30}])
def test_a_training_without_a_best_epoch_is_one_line(drawn, wrong):
    with pytest.raises(UserError, match="no epoch, or a loss that is no number"):
        train(freeze(drawn), **wrong)


def test_the_seconds_of_an_epoch_hold_no_features(drawn, monkeypatch):
    compute = FrozenBackbone.compute

    def slowly(self, images, view):
        time.sleep(0.5)
        return compute(self, images, view)

    monkeypatch.setattr(FrozenBackbone, "compute", slowly)
    monkeypatch.setattr(FrozenBackbone, "kept", {})
    assert train(freeze(drawn), epochs=3).history.seconds.max() < 0.5


def test_of_equal_epochs_the_first_is_best(drawn):
    """Nothing moves at a rate of 0."""
    run = train(freeze(drawn), epochs=9, lr=0.0, patience=3)
    assert run.history.val_loss.nunique() == 1
    assert run.best == 1 and len(run.history) == 4


def test_a_run_stays_what_was_trained(drawn):
    frozen = freeze(drawn)
    run = train(frozen, epochs=3)
    kept = copy.deepcopy(run.head.state_dict()), run.logits.clone(), without_seconds(run)
    train(frozen, epochs=6, views=0)
    assert all(torch.equal(kept[0][key], tensor) for key, tensor in run.head.state_dict().items())
    assert torch.equal(run.logits, kept[1]) and without_seconds(run) == kept[2]
    assert run.settings == {"epochs": 3, "views": 2, "patience": 5, "lr": 1e-2} | SIZES


def test_a_run_in_a_line(drawn):
    run = train(freeze(drawn))
    labels, predicted = drawn.labels[run.frozen.fold.val], run.logits.argmax(dim=1)
    assert torch.equal(right_images(run), labels == predicted)
    row = summarise_run(run)
    accuracy = accuracy_score(labels, predicted)
    interval = accuracy_interval(int((labels == predicted).sum()), VAL)
    assert (row["model"], row["weights"]) == (RESNET, "random")
    assert row["accuracy"] == f"{accuracy:.1%}"
    assert row["95% interval"] == f"{interval.low:.1%}–{interval.high:.1%}"
    assert row["macro-F1"] == f"{f1_score(labels, predicted, average='macro'):.1%}"
    gap = run.history.train_acc_clean[run.best] - accuracy
    assert row["gap"] == f"{gap:+.1%}p"
    assert row["best / epochs"] == f"{run.best} / {len(run.history)}"


# ---- what it writes -----------------------------------------------------------------------------


@pytest.fixture
def stamps(monkeypatch):
    """Stamps that a clock gives: the first thrice, as within one second, then one more each
    time."""
    numbers = iter([0, 0, 0, *range(1, 50)])
    clock = types.SimpleNamespace(
        strftime=lambda form: form.replace("%Y%m%d_%H%M%S", f"20260101_{next(numbers):06}"),
        sleep=lambda seconds: None,
        perf_counter=notebook.time.perf_counter,
    )
    monkeypatch.setattr(notebook, "time", clock)


@pytest.fixture
def weights_folder(tiny_file, tmp_path):
    """A folder of weights with their note, as `transferlab run` gathers them."""
    folder = tmp_path / "gathered"
    folder.mkdir()
    shutil.copy(tiny_file, folder / f"{RESNET}.safetensors")
    note = {"source": "drawn (by hand)", "label": "drawn", "kind": "file"}
    (folder / f"{RESNET}.json").write_text(json.dumps(note))
    return folder


@pytest.fixture
def run(drawn, weights_folder):
    return train(freeze(drawn, str(weights_folder)), epochs=5)


@pytest.fixture
def saved(run, stamps, tmp_path):
    """The files of a run, with two (empty) figures."""
    figures = {"combined": plt.figure(), "confusion": plt.figure()}
    return save_run(run, tmp_path / "out", figures)


def visible(folder):
    """The files that anyone sees: none in hidden folders."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {p for p in paths if not any(n.startswith(".") for n in p.relative_to(folder).parts)}


def test_what_a_run_writes(run, saved, tmp_path):
    out = tmp_path / "out"
    names = {key: path.relative_to(out).as_posix() for key, path in saved.items()}
    first = f"{RESNET}_best_20260101_000000"
    assert names == {
        "model_best.safetensors": f"model/{first}.safetensors",
        "model_best.json": f"model/{first}.json",
        "model_head.safetensors": f"model/{RESNET}_head_20260101_000000.safetensors",
        "result_results.csv": f"result/{RESNET}_results_20260101_000000.csv",
        "img_combined.png": f"img/{RESNET}_combined_20260101_000000.png",
        "img_confusion.png": f"img/{RESNET}_confusion_20260101_000000.png",
    }
    assert visible(out) == set(saved.values())
    assert not list(out.glob(".*"))
    head = load_file(saved["model_head.safetensors"])
    assert head.keys() == {f"fc.{key}" for key in run.head.state_dict()}
    assert all(torch.equal(head[f"fc.{key}"], t) for key, t in run.head.state_dict().items())
    with safe_open(saved["model_best.safetensors"], "pt") as file:
        inside = file.metadata()["description"]
    assert inside == saved["model_best.json"].read_text(encoding="utf-8")
    table = pd.read_csv(saved["result_results.csv"])
    assert [*table.columns] == [
        "epoch",
        "train_loss",
        "train_acc",
        "train_loss_clean",
        "train_acc_clean",
        "val_loss",
        "val_acc",
        "seconds",
    ]
    pd.testing.assert_frame_equal(table.set_index("epoch"), run.history, check_exact=True)
    assert saved["img_combined.png"].read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []  # they are closed, so that no cell shows them twice


def test_a_run_describes_itself(run, saved, drawn):
    described = read_description(saved["model_best.safetensors"])
    assert described.data.classes == CLASSES and described.data.digest == drawn.digest
    assert described.data.synthetic and described.data.rejected == drawn.rejected
    assert (described.weights.kind, described.weights.label) == ("file", "drawn")
    assert described.settings == run.settings and described.best == run.best
    assert described.precision == str(run.frozen.precision)
    assert described.frozen_hash == (run.frozen.hash, run.frozen.hash)
    assert described.val_labels == tuple(drawn.labels[run.frozen.fold.val].tolist())
    assert described.val_predictions == tuple(run.logits.argmax(dim=1).tolist())


def test_saving_twice_overwrites_nothing(run, saved, tmp_path):
    before = {path: path.read_bytes() for path in saved.values()}
    again = save_run(run, tmp_path / "out", {})
    assert {path.stem[-6:] for path in again.values()} == {"000001"}
    assert {path: path.read_bytes() for path in before} == before
    assert len(visible(tmp_path / "out")) == len(before) + len(again) == 6 + 4


def test_a_stamp_that_another_run_saves_under_is_not_taken(run, stamps, tmp_path):
    (tmp_path / ".20260101_000000").mkdir()  # its hidden folder
    files = save_run(run, tmp_path, {})
    assert {path.stem[-6:] for path in files.values()} == {"000001"}
    assert (tmp_path / ".20260101_000000").is_dir()


def test_what_a_killed_run_was_saving_is_swept(run, tmp_path):
    """Its weights take up much of a small disk."""
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=save_until_killed, args=(run, out))
    process.start()
    process.join()
    (held,) = out.iterdir()
    assert process.exitcode == -signal.SIGKILL and list(held.glob("*.safetensors"))
    sweep_stamps(out)
    assert list(out.iterdir()) == []


def save_until_killed(run, folder):
    class Killing(plt.Figure):
        def savefig(self, path, **how):
            os.kill(os.getpid(), signal.SIGKILL)

    save_run(run, folder, {"a": Killing()})


def test_what_a_living_run_is_saving_is_left_to_it(run, tmp_path):
    class Sweeping(plt.Figure):
        def savefig(self, path, **how):
            sweep_stamps(out)
            Path(path).touch()

    out = tmp_path / "out"
    files = save_run(run, out, {"a": Sweeping()})
    assert len(files) == 5 and visible(out) == set(files.values())
    assert not list(out.glob(".*"))


def test_any_name_is_a_figures(run, stamps, tmp_path):
    files = save_run(run, tmp_path, {"my_own": plots.plot_curves(run)})
    assert files["img_my_own.png"] == tmp_path / f"img/{RESNET}_my_own_20260101_000000.png"


def test_a_folder_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserError, match=f"cannot write {out} .*mend out_dir"):
            save_run(run, out, {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        save_run(run, tmp_path / "out", {})
    assert visible(tmp_path / "out") == {tmp_path / "out" / "model"}
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("room", [100, 150_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path, room):
    """No file may be longer than `room` bytes: the first has more, or the figure, the last."""
    figure = plt.figure(figsize=(9, 9))
    figure.figimage(torch.rand(900, 900).numpy())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*mend out_dir"):
            save_run(run, tmp_path / "out", {"noise": figure})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*(tmp_path / "out").rglob("*")] == []


class Stops:
    """A figure that is never finished."""

    def __init__(self, stop):
        self.stop = stop

    def savefig(self, path, **options):
        path.write_bytes(b"half")
        self.stop()


def interrupt():
    raise KeyboardInterrupt


def test_a_save_that_is_interrupted_leaves_nothing(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        save_run(run, tmp_path / "out", {"combined": Stops(interrupt)})
    assert [*(tmp_path / "out").rglob("*")] == []
    assert len(save_run(run, tmp_path / "out", {})) == 4


def test_a_save_that_is_killed_leaves_nothing_that_anyone_sees(run, tmp_path):
    out = tmp_path / "out"

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    figures = {"combined": Stops(die)}
    killed = multiprocessing.get_context("fork").Process(target=save_run, args=(run, out, figures))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert visible(out) == set() and [*out.glob(".*")] != []
    files = save_run(run, out, {})
    assert visible(out) == set(files.values()) and len(files) == 4


def test_to_google_drive_goes_all_but_the_whole_model(saved, tmp_path, monkeypatch):
    mounted = []

    def mount(root):
        mounted.append(root)
        Path(root, "MyDrive").mkdir(parents=True, exist_ok=True)

    drive = types.SimpleNamespace(mount=mount)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    for _ in range(2):  # into a folder that is there, too
        folder = copy_to_drive(saved, str(tmp_path / "drive"))
    assert mounted == [str(tmp_path / "drive")] * 2
    assert folder == tmp_path / "drive/MyDrive/transferlab"
    copied = {path.name: path.read_bytes() for path in folder.iterdir()}
    rest = {path for key, path in saved.items() if key != "model_best.safetensors"}
    assert copied == {path.name: path.read_bytes() for path in rest}
    assert len(copied) == 5 and not any("best" in name and "safe" in name for name in copied)


def test_outside_colab_its_parts_are_refused_in_one_line(saved, tmp_path):
    with pytest.raises(
        UserError, match="only Colab has its drive: turn mount_drive and upload off"
    ):
        copy_to_drive(saved, str(tmp_path / "drive"))
    with pytest.raises(UserError, match="only Colab has its files"):
        from_colab("files")


# ---- what is read back --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [RESNET, EFFICIENTNET])
def test_a_saved_model_answers_as_the_run_did(drawn, tmp_path, name):
    run = train(freeze(drawn, name=name), epochs=3)
    again = load_model(save_run(run, tmp_path, {})["model_best.safetensors"])
    val = run.frozen.fold.val
    images = render_view(drawn, FACES.clean, view=0, seed=SEED, indices=val)
    with torch.inference_mode():
        logits = again.model(images)
    assert torch.allclose(logits, run.logits, rtol=1e-3, atol=1e-4)
    assert torch.equal(logits.argmax(dim=1), run.logits.argmax(dim=1))
    assert again.description.weights.timm_name == name
    assert not again.model.training
    held = again.model.body.state_dict()
    for key, tensor in run.frozen.lower.body.state_dict().items():
        assert torch.equal(held[key], tensor)


def test_damaged_models_are_one_clear_error(saved):
    model, description = saved["model_best.safetensors"], saved["model_best.json"]
    text = description.read_text(encoding="utf-8")
    told = json.loads(text)
    for damage in (
        "{",
        "{}",
        "[]",
        json.dumps(told | {"data": None}),
        json.dumps(told | {"timings": "long"}),
        json.dumps(told | {"best": "1"}),
        json.dumps(told | {"schema": 99}),
    ):
        description.write_text(damage)
        with pytest.raises(UserError, match=f"{description}.* is missing or damaged"):
            load_model(model)
    description.write_text(text)
    whole = model.read_bytes()
    model.write_bytes(whole[:-50])
    with pytest.raises(UserError, match="cut off"):
        load_model(model)
    model.write_bytes(whole)
    load_model(model)
    description.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        load_model(model)


def test_descriptions_that_are_no_values_are_one_clear_error(saved):
    model, description = saved["model_best.safetensors"], saved["model_best.json"]
    told = json.loads(description.read_text(encoding="utf-8"))
    deep = "[" * 100_000
    for damage in (
        deep,
        '{"settings": ' + deep,
        " " * (LARGEST_JSON + 1),
        json.dumps(told | {"schema": None}),
        json.dumps(told | {"best": 0}),
        json.dumps(told | {"best": told["settings"]["epochs"] + 1}),
        json.dumps(told | {"settings": {}}),
        json.dumps(told | {"frozen_hash": "ab"}),
        json.dumps(told | {"timings": [["a", 1.0]]}),
        json.dumps(told | {"data": "name digest"}),
        json.dumps(told | {"data": told["data"] | {"classes": "ab"}}),
        json.dumps(told | {"seed": "9" * 5000}),
    ):
        description.write_text(damage)
        with pytest.raises(UserError, match="is missing or damaged") as caught:
            load_model(model)
        assert len(str(caught.value)) < 600
    description.unlink()
    os.mkfifo(description)  # which nobody writes to
    with pytest.raises(UserError, match="no regular file"):
        load_model(model)


@pytest.mark.parametrize("shape", [(), (8,), (2**40, 0), (0, 2**40), (8, 1), (8, 4, 1)], ids=str)
def test_a_head_of_another_shape_is_one_clear_error(saved, shape):
    model = saved["model_best.safetensors"]
    state = load_file(model)
    (key,) = [name for name in state if name.endswith(".0.weight") and name.startswith("fc.")]
    save_file(state | {key: torch.zeros(shape)}, model)
    with pytest.raises(UserError, match="do not belong together: the head is"):
        load_model(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_of_no_numbers_is_damaged(saved, value):
    model = saved["model_best.safetensors"]
    state = load_file(model)
    state["fc.3.bias"][0] = value
    save_file(state, model)
    with pytest.raises(UserError, match="is damaged: it holds values that are no numbers"):
        load_model(model)


def test_a_best_epoch_that_is_not_in_the_table_is_one_clear_error(
    saved, drawn_folder, weights_folder
):
    results = saved["result_results.csv"]
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(UserError, match="has no epoch"):
        record_of(saved, drawn_folder, weights_folder)


def test_a_model_and_a_description_that_do_not_belong_together(saved):
    model, description = saved["model_best.safetensors"], saved["model_best.json"]
    told = json.loads(description.read_text(encoding="utf-8"))
    for change in (
        {"data": told["data"] | {"classes": ["a", "b"]}},
        {"weights": told["weights"] | {"timm_name": "test_vit.r160_in1k"}},
        {"weights": told["weights"] | {"timm_name": EFFICIENTNET}},
    ):
        description.write_text(json.dumps(told | change))
        with pytest.raises(UserError, match="do not belong together"):
            load_model(model)
    unknown = {"weights": told["weights"] | {"timm_name": "no_such_model"}}
    description.write_text(json.dumps(told | unknown))
    with pytest.raises(UserError, match="cannot build no_such_model"):
        load_model(model)


def record_of(files, folder, weights, augmentation=FACES):
    model = files["model_best.safetensors"]
    given = Given(folder=folder, weights=str(weights), augmentation=augmentation)
    return study_record(model, given)


def test_the_studys_record_says_what_its_parts_say(run, saved, drawn, drawn_folder, weights_folder):
    record = record_of(saved, drawn_folder, weights_folder)
    frozen, fold = run.frozen, run.frozen.fold
    assert (record.kind, record.stamp, record.seed) == ("study", "20260101_000000", SEED)
    assert record.data == (data_info(drawn, FACES),)
    assert record.dataset.synthetic and record.augmentation.name == "faces"
    assert [one.path for one in record.dataset.rejected] == ["$1/bad.png"]
    model, info = create_backbone(RESNET, str(weights_folder))
    assert record.weights == (info,) and info.source == "drawn (by hand)"
    assert info.sha256 == state_hash(model)
    assert record.machine == replace(this_machine(), precision=str(frozen.precision))
    assert record.settings == Settings(epochs=5, views=2, lr=1e-2, **SIZES)
    assert record.split_hash == hash_of_split(drawn, fold)
    assert (record.n_train, record.n_val) == (len(fold.train), len(fold.val)) == (TRAIN, VAL)
    width = frozen.lower.body.head_hidden_size
    assert record.head == HeadInfo(in_features=width, hidden=8, dropout=0.4)
    assert record.trainable_parameters == count_parameters(run.head)
    whole = load_model(saved["model_best.safetensors"]).model
    assert record.parameters == count_parameters(whole)
    assert record.mean == tuple(model.pretrained_cfg["mean"])
    assert record.std == tuple(model.pretrained_cfg["std"])
    assert record.frozen_hash_before == record.frozen_hash_after == frozen.hash
    labels, predicted = drawn.labels[fold.val], run.logits.argmax(dim=1)
    assert record.val_labels == tuple(labels.tolist())
    assert record.val_predictions == tuple(predicted.tolist())
    assert record.accuracy_interval == accuracy_interval(int((labels == predicted).sum()), VAL)
    assert record.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    rows = [Epoch(**row) for row in run.history.reset_index().to_dict("records")]
    assert (record.epochs_run, record.best, record.last) == (5, rows[run.best - 1], rows[-1])
    assert record.highest.val_acc == max(row.val_acc for row in rows)
    assert record.best.val_acc == accuracy_score(labels, predicted)
    clean = [frozen.features(part, seconds=True) for part in ("train", "val")]
    random = [frozen.features("train", view, seconds=True) for view in (1, 2)]
    assert record.timings == pytest.approx(
        {
            "clean view": sum(clean),
            "training views": sum(random),
            "head": run.history["seconds"].sum(),
        }
    )
    assert record.seconds == sum(record.timings.values()) > 0
    assert from_plain(StudyRecord, json.loads(to_json(record))) == record


def test_only_the_views_that_were_trained_on_count(drawn, stamps, drawn_folder, tmp_path):
    """Not those that an earlier training has drawn; without any, no seconds at all."""
    frozen = freeze(drawn)
    train(frozen, epochs=5, views=4)
    for epochs, views, drawn_views in ((5, 0, []), (2, 4, [1]), (5, 2, [1, 2])):
        run = train(frozen, epochs=epochs, views=views)
        files = save_run(run, tmp_path, {})
        record = record_of(files, drawn_folder, "none")
        seconds = [frozen.features("train", view, seconds=True) for view in drawn_views]
        assert record.timings["training views"] == pytest.approx(sum(seconds))


def test_random_weights_are_told_as_such(drawn, drawn_folder, tmp_path):
    run = train(freeze(drawn), epochs=2)
    record = record_of(save_run(run, tmp_path, {}), drawn_folder, "none")
    assert not record.backbone.measures_transfer
    assert record.backbone.sha256 == run.frozen.hash
    assert (record.model, record.backbone.label) == (RESNET, "random")


def test_images_that_have_changed_give_no_record(saved, drawn_folder, weights_folder, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(drawn_folder, changed)
    (changed / "$1" / "0.png").unlink()
    with pytest.raises(UserError, match=f"the images of {changed} have changed"):
        record_of(saved, changed, weights_folder)


@pytest.mark.parametrize("other", [photos_augmentation(32), faces_augmentation(48)])
def test_other_views_than_the_librarys_give_no_record(other, saved, drawn_folder, weights_folder):
    with pytest.raises(UserError, match="draws other views than .*build it anew"):
        record_of(saved, drawn_folder, weights_folder, other)


def test_a_summary_is_written_once(saved, drawn_folder, weights_folder, tmp_path):
    model = saved["model_best.safetensors"]
    given = Given(folder=drawn_folder, weights=str(weights_folder), augmentation=FACES)
    path = write_summary(model, given)
    assert path == tmp_path / f"out/result/{RESNET}_summary_20260101_000000.json"
    record = from_plain(StudyRecord, read_plain(path))
    assert record == study_record(model, given)
    with pytest.raises(UserError, match="is not overwritten"):
        write_summary(model, given)


def test_the_command_makes_a_record_of_every_run_that_a_notebook_saved(
    drawn, drawn_folder, stamps, tmp_path
):
    one = NOTEBOOKS["01"]
    frozen = freeze(drawn, augmentation=one.dataset.augmentation(224))
    for epochs in (1, 2):
        run = train(frozen, epochs=epochs)
        save_run(run, tmp_path, {"combined": plots.plot_curves(run)})
    summarise(one, tmp_path, {"data_dir": str(drawn_folder), "weights": "none"})
    records = read_records(sorted((tmp_path / "result").iterdir()))
    told = [(record.stamp, record.epochs_run) for record in records]
    assert told == [("20260101_000000", 1), ("20260101_000001", 2)]


def test_of_several_runs_the_images_are_read_once(
    drawn, drawn_folder, stamps, tmp_path, monkeypatch
):
    one = NOTEBOOKS["01"]
    frozen = freeze(drawn, augmentation=one.dataset.augmentation(224))
    for epochs in (1, 2):
        save_run(train(frozen, epochs=epochs), tmp_path, {})
    read = []
    load = described.load_folder
    monkeypatch.setattr(
        described, "load_folder", lambda folder: read.append(folder) or load(folder)
    )
    summarise(one, tmp_path, {"data_dir": str(drawn_folder), "weights": "none"})
    assert len(read_records(sorted((tmp_path / "result").iterdir()))) == 2
    assert read == [drawn_folder]


# ---- figures ------------------------------------------------------------------------------------


def draw_all():
    """Draws every figure that is open, as a notebook does."""
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()


def texts(axis):
    return [text.get_text() for text in axis.texts]


def title_of(figure):
    """Its message, and the line of small print under it."""
    return figure.get_suptitle(), figure.get_supxlabel()


@pytest.fixture
def fonts():
    """Names are drawn as they are; what font has them is another matter."""
    found = plots.use_fonts()
    with warnings.catch_warnings():
        action = "error" if found else "ignore"
        warnings.filterwarnings(action, message="Glyph .* missing from font")
        yield found


def test_fonts_are_those_that_have_korean(monkeypatch):
    plots.use_fonts()
    assert plt.rcParams["text.parse_math"] is False
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["/fonts/DejaVuSans.ttf"])
    assert plots.use_fonts() == [] and plt.rcParams["font.family"] == ["DejaVu Sans"]


def test_the_figure_of_class_counts(drawn, fonts):
    fold = split_images(drawn, seed=SEED)
    plots.plot_class_counts(drawn, fold)
    draw_all()
    (axis,) = plt.gcf().axes
    counts = drawn.labels[fold.val].bincount()
    assert axis.get_title() == f"Always answering “{CLASSES[counts.argmax()]}” is right for 33.3%"
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [*CLASSES]
    heights = [[bar.get_height() for bar in part] for part in axis.containers]
    assert heights == [[13, 13, 13], [7, 7, 7]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train", "validation"]


def test_a_class_may_have_no_validation_image(drawn, fonts):
    """One of two images, of which a stratified split may put both into the training part."""
    fold = split_images(drawn, seed=SEED)
    few = replace(fold, val=fold.val[drawn.labels[fold.val] != 2][:11])
    plots.plot_class_counts(drawn, few)
    draw_all()
    assert plt.gca().get_title() == "Always answering “$1” is right for 63.6%"
    assert [bar.get_height() for bar in plt.gca().containers[1]] == [7, 4, 0]


def test_the_grid_of_images(drawn, fonts):
    names = [CLASSES[label] for label in drawn.labels[:9]]
    figure = plots.plot_images(drawn.images[:9], names, "Two $rows of “행복”")
    draw_all()
    assert figure.get_suptitle() == "Two $rows of “행복”"
    assert len(figure.axes) == 14 and not any(axis.axison for axis in figure.axes)
    assert [axis.get_title() for axis in figure.axes] == names + [""] * 5
    shown = figure.axes[3].images[0].get_array()
    assert (shown == drawn.images[3].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("epochs", [1, 5])
def test_the_learning_curves(drawn, fonts, epochs):
    run = train(freeze(drawn), epochs=epochs)
    figure = plots.plot_curves(run)
    draw_all()
    message, small = title_of(figure)
    accuracy = f"{run.history.val_acc[run.best]:.1%}"
    assert accuracy in message and f"epoch {run.best} of {epochs}" in message
    assert small == f"{RESNET} | {drawn.name} | weights: random"
    for axis, kind, factor in zip(figure.axes, ("loss", "acc"), (1, 100)):
        validation, training, best = axis.lines
        assert [*validation.get_ydata()] == pytest.approx([*(factor * run.history[f"val_{kind}"])])
        expected = factor * run.history[f"train_{kind}_clean"]
        assert [*training.get_ydata()] == pytest.approx([*expected])
        assert validation.get_linestyle() == "-" and training.get_linestyle() == "--"
        assert best.get_xdata()[0] == run.best
    assert "nats" in figure.axes[0].get_ylabel() and "%" in figure.axes[1].get_ylabel()


def test_the_confusion_matrix(drawn, fonts):
    run = train(freeze(drawn))
    figure = plots.plot_confusion(run)
    draw_all()
    labels, predicted = drawn.labels[run.frozen.fold.val], run.logits.argmax(dim=1)
    f1 = 100 * f1_score(labels, predicted, average=None)
    message, small = title_of(figure)
    assert message == f"Hardest: “{CLASSES[f1.argmin()]}”, F1 {f1.min():.0f}%"
    assert small == run.frozen.caption
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == [*CLASSES]
    assert sum(int(float(text)) for text in texts(left)) == VAL
    assert [bar.get_width() for bar in right.patches] == pytest.approx([*f1])
    assert right.get_title() == f"macro-F1 {f1.mean():.1f}%"


def test_a_class_that_nobody_answers_has_no_f1(drawn, fonts):
    run = train(freeze(drawn), epochs=1)
    logits = torch.zeros(VAL, 3)
    logits[:, 0] = 1  # always the first
    figure = plots.plot_confusion(replace(run, logits=logits))
    draw_all()
    assert figure.get_suptitle() == f"Hardest: “{CLASSES[1]}”, F1 0%"


def test_runs_side_by_side(drawn, fonts):
    runs = [train(freeze(drawn, name=name), epochs=3) for name in (RESNET, EFFICIENTNET)]
    figure = plots.plot_runs(runs)
    draw_all()
    right_ones = [int(right_images(run).sum()) for run in runs]
    intervals = [accuracy_interval(correct, VAL) for correct in right_ones]
    best = right_ones.index(max(right_ones))
    lead = 100 * (max(right_ones) - min(right_ones)) / VAL
    message, small = title_of(figure)
    assert message.startswith(runs[best].frozen.name) and f"{lead:.1f} points" in message
    assert small == f"{drawn.name} | {RESNET}: random, {EFFICIENTNET}: random"
    left, right = figure.axes
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == [RESNET, EFFICIENTNET]
    assert [text.strip() for text in texts(right)] == [f"{100 * k / VAL:.1f}" for k in right_ones]
    for line, correct, interval in zip(right.lines, right_ones, intervals):
        low, accuracy, high = line.get_xdata() / 100
        assert (low, high) == pytest.approx((interval.low, interval.high))
        assert accuracy == pytest.approx(correct / VAL)
    assert f"{VAL} images" in right.get_xlabel() and "95%" in right.get_xlabel()


def test_the_answer_to_a_picture(drawn, fonts):
    """Of a validation image it is the run's own; a training image is nearest to itself."""
    run = train(freeze(drawn))
    val, training = run.frozen.fold.val, run.frozen.fold.train
    plots.plot_answer(run, drawn.images[val[4]], "나의 그림 $1")
    draw_all()
    answer, near = (plt.figure(number) for number in plt.get_fignums())
    shares = run.logits[4].softmax(dim=0)
    expected = f"“{CLASSES[shares.argmax()]}” {100 * shares.max():.0f}%"
    assert answer.get_suptitle() == f"{expected} | {run.frozen.caption}"
    left, right = answer.axes
    assert left.get_title() == "나의 그림 $1"
    widths = [bar.get_width() for bar in right.patches]
    assert widths == pytest.approx((100 * shares).tolist(), abs=0.01)
    assert near.get_suptitle() == "The training images most like it"
    plt.close("all")
    plots.plot_answer(run, drawn.images[training[7]], "one of them")
    first, *rest = [axis for axis in plt.gcf().axes if axis.images]
    assert (first.images[0].get_array() == drawn.images[training[7]].permute(1, 2, 0).numpy()).all()
    assert first.get_title() == CLASSES[drawn.labels[training[7]]] and len(rest) == 4
