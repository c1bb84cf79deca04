"""Each notebook alone: in an empty folder, transferlab unimportable, on a small image folder."""

import ast
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from transferlab.records import StudyRecord, from_plain, read_plain
from transferlab.techniques import FROZEN, summarise_techniques
from transferlab.train import Settings

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("0*.ipynb"))
PARAMETERS = [
    "data_dir",
    "weights",
    "epochs",
    "views",
    "seed",
    "out_dir",
    "cache_dir",
    "mount_drive",
]


def cell(notebook, cell_id):
    return next(c for c in nbformat.read(notebook, as_version=4).cells if c.id == cell_id)


def run_alone(notebook, image_folder, folder, monkeypatch, *, stubs=None):
    """Runs a copy in `folder`, every import of transferlab refused -> the executed notebook."""
    stub_root = folder / "stubs"
    for name, source in {
        "transferlab": "raise ImportError('a notebook must not need it')",
        **(stubs or {}),
    }.items():
        (stub_root / name).mkdir(parents=True)
        (stub_root / name / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(stub_root))
    alone = folder / "alone"
    alone.mkdir()
    shutil.copy(notebook, alone)
    parameters = {"data_dir": str(image_folder), "weights": "none", "epochs": 2, "views": 1}
    copy = folder / "executed.ipynb"
    papermill.execute_notebook(
        str(alone / notebook.name),
        str(copy),
        parameters=parameters,
        progress_bar=False,
        cwd=str(alone),
    )
    return alone, nbformat.read(copy, as_version=4)


def printed(executed):
    return "".join(
        o.text
        for c in executed.cells
        if c.cell_type == "code"
        for o in c.outputs
        if o.output_type == "stream"
    )


def check_files(alone, models):
    for model in models:
        (summary,) = (alone / "result").glob(f"{model}_summary_*.json")
        record = from_plain(StudyRecord, read_plain(summary))
        assert record.frozen_hash_before == record.frozen_hash_after
        assert record.backbone.kind == "random"
        assert (record.epochs_run, record.n_val, record.schema) == (2, 5, 2)
        assert record.settings.rule == "clean+cycle"
        assert len(list((alone / "result").glob(f"{model}_results_*.csv"))) == 1
        assert {p.suffix for p in (alone / "model").glob(f"{model}_best_*")} == {
            ".json",
            ".safetensors",
        }


def test_there_are_three():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name[:2])
def test_structure(notebook):
    code = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert "parameters" in code[1].metadata.tags
    assert [
        target.id for node in ast.parse(code[1].source).body for target in node.targets
    ] == PARAMETERS
    assert all(
        isinstance(node.value, ast.Constant) for node in ast.parse(code[1].source).body
    )  # no derived value
    assert not any("import transferlab" in c.source or "from transferlab" in c.source for c in code)
    assert "widgets" not in nbformat.read(notebook, as_version=4).metadata


def test_notebooks_define_every_name():
    command = [sys.executable, "-m", "ruff", "check", "--select", "F821,F811", *map(str, NOTEBOOKS)]
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name[:2])
@pytest.mark.parametrize("mount", [True, False])
def test_drive_is_mounted_where_asked(notebook, mount, monkeypatch):
    mounted, prepared = [], []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace())
    space = {
        "mount_drive": mount,
        "out_dir": ".",
        "prepare_out_dir": prepared.append,
        "warnings": types.SimpleNamespace(),
        "this_machine": lambda: types.SimpleNamespace(
            device=types.SimpleNamespace(type="cpu"), precision=""
        ),
        "open_store": str,
        "cache_dir": "",
    }
    exec(cell(notebook, "setup-end").source, space)
    assert mounted == (["/content/drive"] if mount else [])
    assert prepared == (["/content/drive/MyDrive/transferlab"] if mount else ["."])


@pytest.mark.slow
def test_01_alone_as_in_colab(image_folder, tmp_path, monkeypatch):
    stubs = {"google": "", "google/colab": "class drive:\n    mount = None\n"}
    alone, executed = run_alone(NOTEBOOKS[0], image_folder, tmp_path, monkeypatch, stubs=stubs)
    check_files(alone, ["resnet50"])
    assert "weights: random: random initialisation (asked for)" in printed(executed)
    assert "/tmp/ipykernel" not in printed(executed)
    assert len(list((alone / "img").glob("resnet50_*.png"))) == 4


@pytest.mark.slow
def test_02_alone_trains_resnet50_itself(image_folder, tmp_path, monkeypatch):
    alone, executed = run_alone(NOTEBOOKS[1], image_folder, tmp_path, monkeypatch)
    check_files(alone, ["densenet121", "resnet50"])
    assert "no matching run of resnet50" in printed(executed) and "exact McNemar p" in printed(
        executed
    )
    assert len(list((alone / "img").glob("training_results_*.png"))) == 1


@pytest.mark.slow
def test_03_alone(image_folder, tmp_path, monkeypatch):
    alone, executed = run_alone(NOTEBOOKS[2], image_folder, tmp_path, monkeypatch)
    check_files(alone, ["efficientnet_lite0", "efficientnet_b0", "efficientnet_b3", "vit"])
    assert "random initialisation: measures no transfer" in printed(executed)
    assert len(list((alone / "img").glob("training_results_*.png"))) == 1


def told(described, schema):
    """A benchmark's description as it was published first, or as it is written today."""
    if schema == 1:
        return described
    common = ("data", "weights", "processor", "settings")
    return {
        "schema": 2,
        "data": [{"name": name, "digest": one} for name, one in described["data"].items()],
        "weights": [{"name": name} | one for name, one in described["weights"].items()],
        "machine": {"processor": described["processor"]},
        "settings": described["settings"],
        "facts": {key: value for key, value in described.items() if key not in common},
    }


@pytest.mark.parametrize(
    "digest, weights, found", [("d", "w", True), ("other", "w", False), ("d", "other", False)]
)
@pytest.mark.parametrize("schema", [1, 2])
def test_03_reads_techniques_of_its_own_images_and_weights(
    digest, weights, found, schema, tmp_path, capsys
):
    folder, shown = tmp_path / "result/benchmarks", []
    folder.mkdir(parents=True)
    names = {
        "dataset": "ants",
        "model": "lite",
        "fold": 0,
        "n": 20,
        "macro_f1": 0.5,
        "seconds": 1.0,
        "trainable": 1234,
    }
    rows = [
        names | {"kind": kind, "technique": "linear probe", "correct": k}
        for kind, k in (("frozen", 15), ("tuned", 10))
    ]
    rows += [
        row | {"dataset": "faces", "correct": 1} for row in rows
    ]  # in the same file, but not these images
    pd.DataFrame(rows).to_csv(folder / "techniques_20260101_000000.csv", index=False)
    infos = {
        "lite": {"sha256": "w", "source": "made up"},
        "not run here": {"sha256": "x", "source": "s"},
    }
    described = {"data": {"ants": "d", "faces": "f"}, "weights": infos}
    described |= {
        "folds": 1,
        "processor": "p",
        "settings": {"epochs": 30},
        "epochs": 10,
        "size": 112,
    }
    (folder / "techniques_20260101_000000.json").write_text(json.dumps(told(described, schema)))
    pd.DataFrame(rows[1:2]).assign(correct=12).to_csv(
        folder / "techniques_gpu_20260101_000000.csv", index=False
    )
    of_gpu = described | {"processor": "a GPU", "processes": 9}
    (folder / "techniques_gpu_20260101_000000.json").write_text(json.dumps(told(of_gpu, schema)))
    space = {
        "FROZEN": FROZEN,
        "out_dir": tmp_path,
        "Path": Path,
        "read_plain": read_plain,
        "pd": pd,
        "plt": types.SimpleNamespace(show=lambda: None),
        "image_set": types.SimpleNamespace(digest=digest, name="ants"),
        "runs": [
            types.SimpleNamespace(model="lite", backbone=types.SimpleNamespace(sha256=weights))
        ],
        "summarise_techniques": summarise_techniques,
        "plot_techniques": lambda summary, title: shown.append((summary, title)),
    }
    exec(cell(NOTEBOOKS[2], "technique-results").source, space)
    text = capsys.readouterr().out
    assert (
        "lite: made up" in text and "75.0 [" in text and "50.0 [" in text and "1234" in text
    ) == found
    gpu = text.partition("a GPU")[2]  # where techniques were tuned only, and many at once
    assert (
        ("60.0 [" in gpu) == found
        and "seconds" not in gpu
        and "frozen" not in gpu
        and "not run here" not in text
    )
    assert (
        ("skipped" in text) != found
        and len(shown) == found
        and "5.0 [" not in text.replace("75.0 [", "")
    )


@pytest.mark.slow
def test_a_folder_without_images_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(papermill.PapermillExecutionError) as error:
        run_alone(NOTEBOOKS[0], tmp_path / "empty", tmp_path, monkeypatch)
    assert error.value.ename == "UserError" and "no images" in error.value.evalue


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_default_number_of_views_is_one_number(notebook):
    views = Settings().views
    assert f"views = {views}  #" in cell(notebook, "parameters").source
    assert f"[VIEWS={views}]" in (ROOT / "Makefile").read_text(encoding="utf-8")
