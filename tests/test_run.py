"""The commands: where data and weights come from, what errors look like at the command line."""

from dataclasses import replace
from pathlib import Path

import pytest

from transferlab.__main__ import find_commands, main, make_parser
from transferlab.artifacts import write_text
from transferlab.commands import cache
from transferlab.commands import run as run_command
from transferlab.commands.run import find_data, find_notebooks
from transferlab.datasets import FACES, INSECTS
from transferlab.download import DownloadError
from transferlab.errors import UserError
from transferlab.records import to_json
from transferlab.store import default_cache
from transferlab.study import freeze_backbone, train_study


def no_network(*_):
    raise DownloadError("Cannot fetch https://example.org/a.zip: no connection")


def test_the_users_folder_comes_first(image_folder, tmp_path):
    faces = replace(FACES, fetch=pytest.fail, draw=pytest.fail)
    assert find_data(faces, str(image_folder), tmp_path) == image_folder


def test_of_several_folders_the_datasets_own_comes_first(tmp_path):
    for name in ("a", INSECTS.name):
        for part in ("ants", "bees"):
            (tmp_path / name / part).mkdir(parents=True)
            (tmp_path / name / part / "0.png").write_text("x")
    assert find_data(INSECTS, str(tmp_path), tmp_path / "data") == tmp_path / INSECTS.name


def test_offline_a_stand_in_is_drawn_and_said_so(tmp_path, capsys):
    drawn = []
    insects = replace(INSECTS, fetch=no_network, draw=lambda folder: drawn.append(folder) or folder)
    assert find_data(insects, "", tmp_path) == tmp_path / "synthetic_hymenoptera_data"
    assert drawn == [tmp_path / "synthetic_hymenoptera_data"]
    assert "no connection" in capsys.readouterr().out


def test_wrong_data_is_never_replaced_by_drawings(tmp_path):
    def wrong(_):
        raise UserError("What came down is not the data expected")

    with pytest.raises(UserError, match="not the data expected"):
        find_data(replace(INSECTS, fetch=wrong, draw=pytest.fail), "", tmp_path)


def test_a_dataset_of_the_users_own_is_neither_fetched_nor_drawn(tmp_path):
    with pytest.raises(UserError, match="neither fetched nor drawn: give --data"):
        find_data(replace(INSECTS, fetch=None, draw=None), "", tmp_path)


def test_a_missing_notebook_is_named(tmp_path):
    (tmp_path / "01_resnet50_ani_fine_tune.ipynb").touch()
    assert list(find_notebooks("01", tmp_path)) == ["01"]
    for only, number in (("03", "03"), ("", "02")):
        with pytest.raises(UserError, match=f"no notebook {number} in .*clone of the repository"):
            find_notebooks(only, tmp_path)


def test_a_run_prints_its_table_and_files(study, image_folder, tmp_path, monkeypatch, capsys):
    """The notebook itself is replaced: what is tested is what goes into it and what is said of what
    it wrote."""
    frozen = freeze_backbone("test_resnet.r160_in1k", study, weights="none")
    result, record = train_study(frozen, study, progress=False)
    record = replace(
        record,
        stamp="20260101_000000",
        data=(replace(record.dataset, name="images", synthetic=True),),
        weights=(replace(record.backbone, name="resnet50"),),
        best=replace(result.history[0], val_acc=0.5),
        epochs_run=2,
        timings={"head": 3.0},
    )
    given = []

    def notebook(source, copy, parameters):
        given.append(parameters)
        path = copy.with_name("resnet50_summary_20260101_000000.json")
        write_text(path, to_json(record))

    monkeypatch.setattr(run_command, "run_notebook", notebook)
    images = str(image_folder)
    arguments = ["run", "--only", "01", "--data", images, "--weights", "none", "--out"]
    options = ["--epochs", "2", "--views", "1", "--cache-dir", ""]
    assert main([*arguments, str(tmp_path / "out"), *options]) == 0
    out = capsys.readouterr().out
    assert "50.0%" in out and "images (synthetic)" in out and "measures no transfer" in out
    assert "1/2" in out
    assert "result/resnet50_summary_20260101_000000.json" in out
    expected = {
        "data_dir": images,
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
    assert main([*arguments, str(tmp_path / "second"), "--cache-dir", "kept"]) == 0
    assert given[1]["cache_dir"] == str(tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*.safetensors"))
    assert main([*arguments, str(tmp_path / "third"), "--views", "0", "--cache-dir", ""]) == 0
    # Where no number is given, the notebook's own stands; none at all is a number too.
    assert "views" not in given[1] and given[2]["views"] == 0


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
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--epochs", "0"],
        ["run", "--views", "-1"],
        ["run", "--only", "04"],
        ["fly"],
        [],
    ],
)
def test_wrong_options_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_every_option_has_an_example(capsys):
    examples = {"run": 8, "weights": 2, "cache": 2, "compare": 14, "audit": 5}
    assert set(find_commands()) >= set(examples)
    for command, count in examples.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert text.count("e.g.") == count


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "run", interrupted)
    assert main(["cache"]) == 130
    assert "interrupted: what was finished is kept" in capsys.readouterr().err


def test_the_same_option_means_the_same_in_every_command():
    """Each is written once, so that its default is one too."""
    parser = make_parser()
    run, compare, audit = (
        parser.parse_args(arguments)
        for arguments in (
            ["run"],
            ["compare", "--models", "resnet50", "--data", "images"],
            ["audit", "images"],
        )
    )
    for name in ("weights", "out", "cache_dir"):
        assert getattr(run, name) == getattr(compare, name) == getattr(audit, name)
    assert run.views is compare.views is None
    assert parser.parse_args(["cache"]).cache_dir == run.cache_dir


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("TRANSFERLAB_CACHE", "/c")
    assert default_cache() == "/c"
    monkeypatch.delenv("TRANSFERLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == str(Path("/x/transferlab"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == str(Path.home() / ".cache/transferlab")
