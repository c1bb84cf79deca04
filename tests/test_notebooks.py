"""Each notebook alone: in an empty folder, transferlab unimportable, on a small image folder."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell

from transferlab.commands.run import NOTEBOOKS, summarise
from transferlab.described import load_model, read_description
from transferlab.records import StudyRecord, from_plain, read_plain
from transferlab.technique_scores import summarise_techniques
from transferlab.train import Settings

ROOT = Path(__file__).resolve().parents[1]
PATHS = {number: ROOT / f"{one.stem}.ipynb" for number, one in NOTEBOOKS.items()}
PARAMETERS = {"data_dir": "", "weights": "auto", "epochs": 30, "views": 4, "seed": 42}
PARAMETERS |= {"out_dir": ".", "mount_drive": False}
SMALL = {"weights": "none", "epochs": 2, "views": 1}
TRAINING = {"01": "train-run", "02": "runs", "03": "runs"}  # the cell that trains
TRAINED = {"01": "[run]", "02": "[resnet, densenet]", "03": "[*runs.values()]"}
each_notebook = pytest.mark.parametrize("number", PATHS)


def read(number):
    return nbformat.read(PATHS[number], as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell(notebook, name):
    return next(one for one in notebook.cells if one.id == name)


def set_parameters(notebook, parameters):
    """Puts values into the form, as a reader would."""
    lines = cell(notebook, "parameters").source.split("\n")
    for place, line in enumerate(lines):
        name = line.split(" =")[0]
        if name in parameters:
            lines[place] = f"{name} = {parameters[name]!r}"
    cell(notebook, "parameters").source = "\n".join(lines)


def execute(notebook, folder, monkeypatch, *, allow_errors=False):
    """Runs it in an empty folder, every import of transferlab refused."""
    stubs = folder / "stubs/transferlab"
    stubs.mkdir(parents=True)
    (stubs / "__init__.py").write_text("raise ImportError('a notebook must not need it')")
    monkeypatch.setenv("PYTHONPATH", str(stubs.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    alone = folder / "alone"
    alone.mkdir()
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        allow_errors=allow_errors,
        resources={"metadata": {"path": str(alone)}},
    )
    client.execute()
    return alone


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def shown_errors(cell):
    """What stands where a traceback would."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    return ["\n".join(error.traceback) for error in errors]


# ---- what a reader sees before anything runs -------------------------------------------------


@each_notebook
def test_the_form_holds_plain_settings(number):
    source = cell(read(number), "parameters").source
    values = {node.targets[0].id: node.value.value for node in ast.parse(source).body}
    own = {"random_backbones": False} if number == "03" else {}
    assert values == PARAMETERS | own
    lines = source.split("\n")
    assert lines[0].startswith("# @title ")
    assert all('# @param {type:"' in line for line in lines[1:])


@each_notebook
def test_the_default_number_of_views_is_one_number(number):
    assert PARAMETERS["views"] == Settings().views
    assert f"[VIEWS={Settings().views}]" in (ROOT / "Makefile").read_text(encoding="utf-8")


@each_notebook
def test_it_asks_for_a_gpu_and_holds_no_widgets(number):
    metadata = read(number).metadata
    assert metadata.accelerator == "GPU" and metadata.colab.gpuType == "T4"
    assert "widgets" not in metadata


@each_notebook
def test_it_ends_with_the_readers_picture_a_summary_and_folded_answers(number):
    cells = read(number).cells
    assert cells[-2].id == "picture" and cells[-1].id == "summary"
    assert "my_image" in cells[-2].source and "upload" in cells[-2].source
    text = cells[-1].source
    exercises = len(re.findall(r"^\*\*\d\. ", text, re.MULTILINE))
    assert "## 정리" in text and exercises == 3 == text.count("<details><summary>답</summary>")


def test_every_name_is_defined():
    command = [sys.executable, "-m", "ruff", "check", "--select", "F821,F811"]
    result = subprocess.run([*command, *map(str, PATHS.values())], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@each_notebook
def test_it_imports_nothing_of_this_library(number):
    sources = [one.source for one in code_cells(read(number))]
    assert not any(re.search(r"^\s*(import|from) transferlab", one, re.M) for one in sources)


def test_the_techniques_in_03_are_those_that_were_measured():
    text = cell(read("03"), "techniques").source
    rows = re.findall(r"^\| ([\w -]+) \| [^|]+ \| ([\d.]+) \| ([\d.]+)–([\d.]+) \|$", text, re.M)
    files = sorted((ROOT / "result/benchmarks").glob("techniques_2*.csv"))
    summary = summarise_techniques(pd.read_csv(files[-1]))
    told = read_plain(files[-1].with_suffix(".json"))
    told = told.get("facts", told)
    assert f"{told['size']}픽셀, {told['epochs']}에포크" in text
    tuned = summary[(summary.dataset == "hymenoptera_data") & (summary.kind == "tuned")]
    tuned = tuned[tuned.model == "efficientnet_lite0"].set_index("technique")
    assert len(rows) == 5
    for name, *values in rows:
        measured = tuned.loc[name, ["accuracy", "low", "high"]]
        assert values == [f"{100 * value:.1f}" for value in measured]


# ---- run as a reader runs it -----------------------------------------------------------------


def check_saved(alone, number, folder, models):
    """Every file is there; the model read back answers as it did; the study's record is made."""
    written = {path for path in alone.rglob("*") if path.is_file()}
    assert not [path for path in written if path.name.startswith(".")]
    summarise(NOTEBOOKS[number], alone, {"data_dir": str(folder), "weights": "none"})
    found = {}
    for path in sorted((alone / "model").glob("*_best_*.safetensors")):
        described = read_description(path)
        assert described.frozen_hash[0] == described.frozen_hash[1]
        assert len(load_model(path).description.val_predictions) == len(described.val_labels)
        found.setdefault(described.weights.name, []).append(path)
    assert set(found) == models
    records = sorted((alone / "result").glob("*_summary_*.json"))
    for path in records:
        record = from_plain(StudyRecord, read_plain(path))
        assert record.backbone.kind == "random" and record.epochs_run == 2
    return found


MODELS = {
    "01": {"resnet50"},
    "02": {"resnet50", "densenet121"},
    "03": {"efficientnet_lite0", "efficientnet_b0", "efficientnet_b3", "vit"},
}


def told_of(trained):
    """Code that keeps what was trained, without its seconds."""
    return (
        f"[(one.frozen.name, one.best, one.history.drop(columns='seconds'), "
        f"one.logits.tolist()) for one in {trained}]"
    )


COMPARE = """
for (name, best, history, logits), (name_2, best_2, history_2, logits_2) in zip(told, {again}):
    assert (name, best, logits) == (name_2, best_2, logits_2)
    assert history.equals(history_2)
"""
INTERRUPTED = """
before, passed = train_epoch, []
def train_epoch(*arguments):
    passed.append(None)
    if len(passed) == 2:
        raise KeyboardInterrupt
    return before(*arguments)
"""


@pytest.mark.slow
@each_notebook
def test_every_click_may_be_repeated(number, image_folder, tmp_path, monkeypatch):
    notebook = read(number)
    random = {"random_backbones": True} if number == "03" else {}
    set_parameters(notebook, SMALL | random | {"data_dir": str(image_folder)})
    cells = []
    for one in code_cells(notebook):
        cells.append(one)
        if one.id == "setup":
            continue
        again = new_code_cell(one.source)
        if one.id != TRAINING[number]:
            cells.append(again)
            continue
        told = told_of(TRAINED[number])
        cells.append(new_code_cell(f"told = {told}\nkept = len(FrozenBackbone.kept)"))
        cells.append(again)
        cells.append(new_code_cell(COMPARE.format(again=told)))
        cells.append(new_code_cell("assert len(FrozenBackbone.kept) == kept"))
        stopped = new_code_cell(one.source, metadata={"tags": ["raises-exception"]})
        cells += [new_code_cell(INTERRUPTED), stopped, new_code_cell("train_epoch = before")]
        cells.append(new_code_cell(one.source))
        cells.append(new_code_cell(COMPARE.format(again=told)))
        cells.append(new_code_cell("assert len(FrozenBackbone.kept) == kept"))
    notebook.cells = cells
    alone = execute(notebook, tmp_path, monkeypatch)
    (place,) = [
        i for i, one in enumerate(cells) if "raises-exception" in one.metadata.get("tags", [])
    ]
    assert any(
        error.ename == "KeyboardInterrupt" for error in cells[place].outputs if "ename" in error
    )
    saved = check_saved(alone, number, image_folder, MODELS[number])
    assert all(len(paths) == 2 for paths in saved.values())  # a stamp of its own each time


@pytest.mark.slow
def test_02_compares_no_two_different_trainings(image_folder, tmp_path, monkeypatch):
    """Interrupted in its second backbone after the seed was changed, it keeps both as they were."""
    notebook = read("02")
    set_parameters(notebook, SMALL | {"data_dir": str(image_folder)})
    place = [one.id for one in notebook.cells].index("runs")
    source = cell(notebook, "runs").source
    stop = "before, passed = FrozenBackbone.compute, []\n" + INTERRUPT_SECOND
    added = [
        new_code_cell("seed = 7\n" + stop),
        new_code_cell(source, metadata={"tags": ["raises-exception"]}),
        new_code_cell("assert (resnet.frozen.seed, densenet.frozen.seed) == (42, 42)"),
        new_code_cell("FrozenBackbone.compute = before"),
        new_code_cell(source),
        new_code_cell("assert (resnet.frozen.seed, densenet.frozen.seed) == (7, 7)"),
        new_code_cell("data_dir = 'another folder'"),
        new_code_cell(source, metadata={"tags": ["raises-exception"]}),
    ]
    notebook.cells = notebook.cells[: place + 1] + added
    execute(notebook, tmp_path, monkeypatch)
    assert any(output.get("ename") == "KeyboardInterrupt" for output in added[1].outputs)
    (message,) = shown_errors(added[-1])
    assert "‘1. 데이터’부터 다시 실행하세요" in message and "Traceback" not in message


INTERRUPT_SECOND = """
def compute(self, images, view):
    passed.append(self.name)
    if self.name == "densenet121":
        raise KeyboardInterrupt
    return before(self, images, view)
FrozenBackbone.compute = compute
"""


@pytest.mark.slow
def test_changed_settings_act_on_the_next_run_of_the_training_cell(
    image_folder, tmp_path, monkeypatch
):
    notebook = read("01")
    set_parameters(notebook, SMALL | {"data_dir": str(image_folder)})
    train = cell(notebook, "train-run").source
    place = [one.id for one in notebook.cells].index("train-run")
    checks = [
        "assert len(run.history) == 2 and run.settings['views'] == 1",
        "epochs, views = 3, 0",
        train,
        "assert len(run.history) == 3 and run.settings['views'] == 0",
        "seed = 7",
    ]
    notebook.cells = notebook.cells[: place + 1] + [new_code_cell(source) for source in checks]
    stale = new_code_cell(train, metadata={"tags": ["raises-exception"]})
    notebook.cells.append(stale)
    execute(notebook, tmp_path, monkeypatch)
    (message,) = shown_errors(stale)
    assert "‘1. 데이터’부터 다시 실행하세요" in message and "Traceback" not in message


@pytest.mark.slow
@each_notebook
@pytest.mark.parametrize("data_dir", ["", "no such folder"])
def test_without_data_every_cell_says_what_to_do(number, data_dir, tmp_path, monkeypatch):
    notebook = read(number)
    set_parameters(notebook, SMALL | {"data_dir": data_dir})
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    cell(notebook, "setup").source += OFFLINE
    execute(notebook, tmp_path, monkeypatch, allow_errors=True)
    needs_data = [one for one in code_cells(notebook) if shown_errors(one)]
    assert {"data", "picture", TRAINING[number]} <= {one.id for one in needs_data}
    for one in needs_data:
        (message,) = shown_errors(one)
        korean, english = message.split("\n")
        assert re.search("[가-힣]", korean) and english.startswith("error: ")


OFFLINE = """
import socket as _socket, urllib.request as _request
def _refuse(*arguments, **options):
    raise OSError("no network in this test")
_socket.create_connection = _refuse
_request.urlopen = urlopen = _refuse
"""


@pytest.mark.slow
def test_03_skips_and_names_a_backbone_without_weights(image_folder, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    notebook = read("03")
    data = {"data_dir": str(image_folder), "weights": str(tmp_path / "weights")}
    set_parameters(notebook, SMALL | data)
    place = [one.id for one in notebook.cells].index("runs")
    notebook.cells = notebook.cells[: place + 1]
    execute(notebook, tmp_path, monkeypatch)
    text = printed(cell(notebook, "runs"))
    assert all(f"건너뜀: no weights for {name} in weights" in text for name in MODELS["03"])


@pytest.mark.slow
def test_a_picture_of_ones_own_and_one_that_is_none(image_folder, tmp_path, monkeypatch):
    notebook = read("01")
    set_parameters(notebook, SMALL | {"data_dir": str(image_folder)})
    picture = sorted(image_folder.rglob("*.png"))[0]
    shutil.copy(picture, tmp_path / "mine $1 그림.png")
    (tmp_path / "note.txt").write_text("no image")
    source = cell(notebook, "picture").source
    own = source.replace('my_image = ""', f"my_image = {str(tmp_path / 'mine $1 그림.png')!r}")
    bad = source.replace('my_image = ""', f"my_image = {str(tmp_path / 'note.txt')!r}")
    shown = new_code_cell(own)
    refused = new_code_cell(bad, metadata={"tags": ["raises-exception"]})
    notebook.cells += [shown, refused]
    execute(notebook, tmp_path, monkeypatch)
    assert sum("image/png" in output.get("data", {}) for output in shown.outputs) == 2
    (message,) = shown_errors(refused)
    assert "다시 실행하세요" in message and "Traceback" not in message


@pytest.mark.slow
def test_drive_gets_a_copy_and_replaces_no_setting(image_folder, tmp_path, monkeypatch):
    notebook = read("01")
    set_parameters(notebook, SMALL | {"data_dir": str(image_folder), "mount_drive": True})
    drive = tmp_path / "drive"
    stub = f"""
import sys, types
for name in ("google", "google.colab"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["google.colab.drive"] = types.SimpleNamespace(mount=lambda root: None)
import pathlib
pathlib.Path({str(drive)!r}, "MyDrive").mkdir(parents=True)
copy_to_drive.__defaults__ = ({str(drive)!r},)
"""
    cell(notebook, "setup").source += stub
    alone = execute(notebook, tmp_path, monkeypatch)
    copied = {path.name for path in (drive / "MyDrive/transferlab").iterdir()}
    here = {path.name for path in alone.rglob("*") if path.is_file()}
    (whole,) = [name for name in here if re.fullmatch(r".*_best_.*\.safetensors", name)]
    assert copied == here - {whole}
    assert json.loads((alone / "model" / whole).with_suffix(".json").read_text())["seed"] == 42
