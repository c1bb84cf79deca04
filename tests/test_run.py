"""The commands: where data and weights come from, what errors look like at the command line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
from safetensors.torch import load_file

from transferlab import pretrained
from transferlab.__main__ import find_commands, main, make_parser
from transferlab.artifacts import write_text
from transferlab.backbones import create_backbone
from transferlab.commands import cache
from transferlab.commands import run as run_command
from transferlab.commands.run import (
    NOTEBOOKS,
    find_data,
    find_notebooks,
    gather_weights,
    run_notebook,
    weight_parameters,
)
from transferlab.datasets import FACES, INSECTS
from transferlab.download import DownloadError
from transferlab.errors import UserError
from transferlab.pretrained import Download
from transferlab.published import read_record
from transferlab.records import StudyRecord, to_json
from transferlab.store import default_cache

ROOT = Path(__file__).resolve().parents[1]
RESNET = "test_resnet.r160_in1k"
VIT = "test_vit.r160_in1k"
LITE0 = "efficientnet_lite0"


@pytest.fixture
def no_hub(monkeypatch):
    """No hub, whatever it is asked for."""
    gone = Download(path=None, reason="no connection")
    monkeypatch.setattr(pretrained, "download_weights", lambda repo_id: gone)


def tiny_notebook(number, *names):
    """A notebook of other backbones."""
    return replace(NOTEBOOKS[number], backbones=names)


def note_of(name, folder):
    """What a gathered file says of itself."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


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


def test_a_run_prints_its_table_and_files(image_folder, tmp_path, monkeypatch, capsys):
    """The notebook itself is replaced: what is tested is what goes into it and what is said of what
    it wrote."""
    published = next((ROOT / "result").glob("resnet50_summary_*.json"))
    record = read_record(published, StudyRecord)
    record = replace(
        record,
        data=(replace(record.dataset, name="images", synthetic=True),),
        weights=(replace(record.backbone, kind="random"),),
        best=replace(record.best, epoch=1, val_acc=0.5),
        epochs_run=2,
    )
    given = []

    def notebook(source, copy, parameters):
        given.append(parameters)
        path = copy.with_name("resnet50_summary_20260101_000000.json")
        write_text(path, to_json(record))

    monkeypatch.setattr(run_command, "run_notebook", notebook)
    images = str(image_folder)
    arguments = ["run", "--only", "01", "--data", images, "--weights", "none", "--out"]
    assert main([*arguments, str(tmp_path / "out"), "--epochs", "2", "--views", "1"]) == 0
    out = capsys.readouterr().out
    assert "50.0%" in out and "images (synthetic)" in out and "measures no transfer" in out
    assert "1/2" in out
    assert "result/resnet50_summary_20260101_000000.json" in out
    expected = {"data_dir": images, "weights": "none", "epochs": 2, "views": 1, "seed": 42}
    assert given == [expected | {"out_dir": ".."}]  # as its copy lies in the out folder
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "second"]) == 0
    assert main([*arguments, "third", "--views", "0"]) == 0
    assert len(list((tmp_path / "second" / "result").glob("*.json"))) == 1
    # Where no number is given, the notebook's own stands; none at all is a number too.
    assert "views" not in given[1] and given[2]["views"] == 0


def test_gathered_are_links_that_say_where_the_weights_come_from(tiny_file, tmp_path):
    tiny_file.with_suffix(".json").write_text('{"source": "drawn (by hand)", "input_size": 64}')
    place = gather_weights([RESNET], str(tiny_file.parent), tmp_path / "gathered")
    assert place == str(tmp_path / "gathered")
    gathered = tmp_path / "gathered" / f"{RESNET}.safetensors"
    assert gathered.is_symlink() and gathered.samefile(tiny_file)
    told = {"source": "drawn (by hand), at 64 px", "label": "drawn", "kind": "file"}
    assert note_of(RESNET, tmp_path / "gathered") == told


def test_where_links_are_not_possible_there_are_copies(tiny_file, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    gather_weights([RESNET], str(tiny_file), tmp_path / "gathered")
    gathered = tmp_path / "gathered" / f"{RESNET}.safetensors"
    assert not gathered.is_symlink() and gathered.read_bytes() == tiny_file.read_bytes()


def test_the_hubs_file_is_gathered_as_that(tiny_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_file.parent)
    hub = Download(path=tiny_file.name)  # HF_HOME may be relative; a link's target must not be
    monkeypatch.setattr(pretrained, "download_weights", lambda repo_id: hub)
    gather_weights([RESNET], "auto", tmp_path / "gathered")
    assert (tmp_path / "gathered" / f"{RESNET}.safetensors").samefile(tiny_file)
    repository = f"timm/{RESNET}"
    told = {"source": f"hub: {repository}", "label": repository, "kind": "hub"}
    assert note_of(RESNET, tmp_path / "gathered") == told


def test_weights_dir_comes_before_the_hub(tiny_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "download_weights", pytest.fail)
    monkeypatch.chdir(tiny_file.parent.parent)
    monkeypatch.setenv("WEIGHTS_DIR", "weights")
    gather_weights([RESNET], "auto", tmp_path / "gathered")
    assert (tmp_path / "gathered" / f"{RESNET}.safetensors").samefile(tiny_file)


def test_one_file_serves_every_backbone_and_a_pickle_becomes_safetensors(tiny_file, tmp_path):
    state = load_file(tiny_file)
    torch.save(state, tmp_path / "mine.pth")
    names = [RESNET, "test_resnet"]
    gather_weights(names, str(tmp_path / "mine.pth"), tmp_path / "gathered")
    for name in names:
        gathered = load_file(tmp_path / "gathered" / f"{name}.safetensors")
        assert gathered.keys() == state.keys()
        assert all(torch.equal(gathered[key], state[key]) for key in state)
        assert note_of(name, tmp_path / "gathered")["source"] == "file mine.pth"


def test_the_packages_weights_are_gathered_by_timms_names(no_hub, tmp_path):
    gather_weights([LITE0], "auto", tmp_path)
    told = note_of(LITE0, tmp_path)
    assert told["kind"] == "package" and "Apache 2.0" in told["source"]
    _, gathered = create_backbone(LITE0, str(tmp_path))
    _, packaged = create_backbone(LITE0)
    assert packaged.kind == "package" and gathered.sha256 == packaged.sha256


def test_a_file_that_does_not_fit_is_refused_by_its_own_name(no_hub, tiny_file, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(tiny_file.read_bytes()[:-1])
    for name, path in ((VIT, tiny_file), (RESNET, tmp_path / "cut.safetensors")):
        with pytest.raises(UserError, match=f"weights file {path} "):
            gather_weights([name], str(path), tmp_path / "gathered")


def test_a_folder_that_cannot_be_written_is_named(tiny_file, tmp_path):
    folder = tmp_path / "gathered"
    (folder / f"{RESNET}.safetensors").mkdir(parents=True)
    with pytest.raises(UserError, match=f"cannot write {folder}/{RESNET}.safetensors"):
        gather_weights([RESNET], str(tiny_file), folder)


def test_all_of_a_comparison_are_pretrained_or_none(no_hub, tiny_file, tmp_path, capsys):
    """02 compares its two: one with weights and one without would be no comparison."""
    one = tiny_notebook("02", VIT, RESNET)
    parameters = weight_parameters(one, str(tiny_file.parent), tmp_path / "gathered")
    assert parameters == {"weights": "none"} and not (tmp_path / "gathered").exists()
    missing, loud = capsys.readouterr().out.splitlines()
    assert missing.startswith(f"no weights for {VIT} (no connection; ")
    assert f"no {VIT}.safetensors" in missing and missing.endswith("): random initialisation")
    assert f"{VIT}, {RESNET}: ALL AT RANDOM, MEASURES NO TRANSFER" in loud
    parameters = weight_parameters(tiny_notebook("01", VIT), "auto", tmp_path)
    assert parameters == {"weights": "none"} and "MEASURES NO TRANSFER" in capsys.readouterr().out


def test_03_goes_on_without_those_that_are_missing(no_hub, tiny_file, tmp_path, capsys):
    one = tiny_notebook("03", VIT, RESNET)
    parameters = weight_parameters(one, str(tiny_file.parent), tmp_path / "gathered")
    assert parameters == {"weights": str(tmp_path / "gathered"), "random_backbones": False}
    gathered = {path.name for path in (tmp_path / "gathered").iterdir()}
    assert gathered == {f"{RESNET}.safetensors", f"{RESNET}.json"}
    out = capsys.readouterr().out
    assert out.startswith(f"no weights for {VIT} (no connection; ")
    assert f"no {VIT}.safetensors" in out and out.endswith("): left out\n") and out.count("\n") == 1


def test_03_is_random_where_all_are_missing(no_hub, tmp_path, capsys):
    parameters = weight_parameters(tiny_notebook("03", VIT, RESNET), "auto", tmp_path / "gathered")
    assert parameters == {"weights": "none", "random_backbones": True}
    out = capsys.readouterr().out
    assert out.count("no connection") == 2 and out.count("MEASURES NO TRANSFER") == 1


def test_random_weights_that_were_asked_for_are_no_surprise(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_command, "find_pretrained", pytest.fail)
    for number, more in (("01", {}), ("02", {}), ("03", {"random_backbones": True})):
        parameters = weight_parameters(NOTEBOOKS[number], "none", tmp_path / "gathered")
        assert parameters == {"weights": "none"} | more
    assert capsys.readouterr().out == "" and not (tmp_path / "gathered").exists()


def test_the_notebooks_backbones_are_those_of_the_study():
    named = {name for one in NOTEBOOKS.values() for name in one.backbones}
    assert named == set(pretrained.BACKBONES)
    for number, one in NOTEBOOKS.items():
        text = (ROOT / "notebooks" / f"{one.stem}.py").read_text(encoding="utf-8")
        assert [name for name in one.backbones if f'"{name}"' not in text] == [], number


@pytest.mark.parametrize("fails", [False, True])
def test_gathered_weights_stay_until_the_last_notebook_ends(
    fails, no_hub, tiny_file, image_folder, tmp_path, monkeypatch
):
    gathered = []
    random = []

    def notebook(source, copy, parameters):
        (path,) = Path(parameters["weights"]).glob("*.safetensors")
        assert path.samefile(tiny_file)
        gathered.append(path)
        random.append(parameters.get("random_backbones"))
        if fails:
            raise UserError("a cell fails")

    monkeypatch.setattr(run_command, "run_notebook", notebook)
    monkeypatch.setattr(run_command, "result_table", lambda records: "")
    for number in NOTEBOOKS:
        monkeypatch.setitem(NOTEBOOKS, number, tiny_notebook(number, RESNET))
    arguments = ["run", "--data", str(image_folder), "--weights", str(tiny_file.parent)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == (2 if fails else 0)
    assert random == ([None] if fails else [None, None, False])
    assert not any(path.parent.parent.exists() for path in gathered)


def test_everything_is_found_before_any_notebook_is_executed(
    no_hub, tiny_file, image_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run_command, "run_notebook", pytest.fail)
    for number, name in (("01", RESNET), ("02", RESNET), ("03", VIT)):
        monkeypatch.setitem(NOTEBOOKS, number, tiny_notebook(number, name))
    arguments = ["run", "--data", str(image_folder), "--weights", str(tiny_file)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert f"weights file {tiny_file} does not fit" in capsys.readouterr().err


FAILING = """
class DataError(Exception):
    def _render_traceback_(self):
        return ["사진 폴더를 확인하세요.", f"error: {self}"]
print("seed", seed)
raise DataError("class ants is empty: add images")
"""


def test_a_cell_that_fails_is_told_by_its_message_alone(tmp_path, capsys):
    cells = [nbformat.v4.new_code_cell(FAILING)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    nbformat.write(notebook, tmp_path / "01.ipynb")
    copy = tmp_path / "executed.ipynb"
    with pytest.raises(UserError) as told:
        run_notebook(tmp_path / "01.ipynb", copy, {"seed": 7})
    assert str(told.value) == "01.ipynb stopped: class ants is empty: add images"
    shown = capsys.readouterr()
    assert shown.out == "seed 7\n" and "확인" not in shown.err
    assert "확인" in copy.read_text(encoding="utf-8")


def test_an_error_that_is_not_ours_is_told_with_its_kind(tmp_path, monkeypatch):
    def fails(*_, **options):
        raise papermill.PapermillExecutionError(3, 2, "1 / 0", "ZeroDivisionError", "by zero", [])

    monkeypatch.setattr(papermill, "execute_notebook", fails)
    with pytest.raises(UserError, match="01.ipynb stopped: ZeroDivisionError: by zero"):
        run_notebook(Path("01.ipynb"), tmp_path / "executed.ipynb", {})


def test_each_notebook_is_given_its_own_dataset_of_a_root(tmp_path, monkeypatch):
    for name in (FACES.name, INSECTS.name):
        for part in ("a", "b"):
            (tmp_path / "root" / name / part).mkdir(parents=True)
            (tmp_path / "root" / name / part / "0.png").write_text("x")
    given = []
    monkeypatch.setattr(
        run_command, "run_notebook", lambda source, copy, parameters: given.append(parameters)
    )
    monkeypatch.setattr(run_command, "result_table", lambda records: "")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--data", "root", "--weights", "none", "--out", "out"]) == 0
    names = [FACES.name, FACES.name, INSECTS.name]
    assert [one["data_dir"] for one in given] == [str(tmp_path / "root" / name) for name in names]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--data", "no/such/folder", "--weights", "none"],
            "no/such/folder",
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


@pytest.mark.parametrize("data", [".", "images"])
def test_nothing_is_written_into_the_images(image_folder, tmp_path, monkeypatch, capsys, data):
    shutil.copytree(image_folder, tmp_path / "images")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / data)
    assert main(["run", "--data", ".", "--weights", "none"]) == 2
    told = capsys.readouterr().err
    assert "nothing is written into" in told and told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


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
    examples = {"run": 7, "weights": 2, "cache": 2, "compare": 16, "audit": 5}
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
    for name in ("weights", "out"):
        assert getattr(run, name) == getattr(compare, name) == getattr(audit, name)
    assert run.views is compare.views is None
    assert parser.parse_args(["cache"]).cache_dir == compare.cache_dir == audit.cache_dir
    assert not hasattr(run, "cache_dir")  # notebooks keep nothing on disk


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("TRANSFERLAB_CACHE", "/c")
    assert default_cache() == "/c"
    monkeypatch.delenv("TRANSFERLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == str(Path("/x/transferlab"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == str(Path.home() / ".cache/transferlab")
