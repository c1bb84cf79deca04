"""The report is what its runs say: rendered again byte for byte, refused where a file, a number or
a sentence is wrong."""

import hashlib
import json
import math
import re
import shutil
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from jinja2.exceptions import UndefinedError

from benchmarks import enough_views
from transferlab import technique_scores
from transferlab.compared import prediction_table
from transferlab.data import Folds, HeldOutFold
from transferlab.heldout import ComparisonRecord, Predictions
from transferlab.machine import Machine
from transferlab.metrics import Interval, PairedTest
from transferlab.pretrained import WeightsInfo
from transferlab.published import read_record
from transferlab.records import BenchmarkRecord, DataInfo, StudyRecord, to_json
from transferlab.train import Settings
from transferlab.verdicts import (
    IDENTICAL,
    TOO_FEW_REPEATS,
    PairTest,
    compare_pairs,
    score_model,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "report"), str(ROOT / "tools")]
import comparisons  # noqa: E402 - scripts beside what they work on, not a package
import measured  # noqa: E402
import named  # noqa: E402
import overview  # noqa: E402
import publish  # noqa: E402
import render  # noqa: E402
import runs  # noqa: E402
import sources  # noqa: E402
import technique_results  # noqa: E402
import typed  # noqa: E402


@pytest.fixture(scope="module")
def context():
    return sources.load_context()


def report_of(context):
    """The rendered report."""
    return render.render(context)[context.root / "experiment_report.md"]


def readme_of(context):
    """The rendered results in the README."""
    text = render.render(context)[context.root / "README.md"]
    return text.split(render.BEGIN)[1].split(render.END)[0]


def test_rendered_again_it_is_the_same(context):
    for path, text in render.render(context).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make report`"
    assert render.drawn_source() == render.overview_source(), (
        "the overview figure is stale: run `make report`"
    )


def test_a_touched_result_is_refused(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "result").mkdir()
    touched = tmp_path / "result/resnet50_summary_20260101_000000.json"
    touched.write_text('{"best": 0.41}')
    entry = f'[[files]]\nnotebook = "01"\npath = "result/{touched.name}"\nsha256 = "{"0" * 64}"\n'
    (tmp_path / "report/runs.toml").write_text(entry)
    with pytest.raises(SystemExit, match="has changed since it was published"):
        named.read_named_files(tmp_path)
    touched.unlink()
    with pytest.raises(SystemExit, match="missing"):
        named.read_named_files(tmp_path)


def test_numbers_are_what_they_claim_to_be():
    assert typed.proportion(64 / 159, 159) == "40.3 % (64/159)"
    assert typed.mean(0.34549) == "34.5 %"
    assert typed.interval(Interval(low=0.1, high=0.25)) == "10.0–25.0 %"
    assert typed.points(-0.0123) == "-1.2"
    assert typed.score(0.2273) == "0.227"
    assert typed.signed(1.5) == "+1.500"
    assert typed.ratio(0.712) == "0.71"
    assert typed.ratio(0.00032) == "0.00032"
    assert typed.exact(0.001) == "0.001"
    assert typed.seconds(231.4) == "231"
    assert typed.amount(1289.7) == "1,290"
    assert typed.count(7482247.0) == "7,482,247"
    with pytest.raises(SystemExit, match="no proportion of 159"):
        typed.proportion(0.4312, 159)
    for function in typed.FILTERS:
        arguments = (159,) if function is typed.proportion else ()
        for wrong in (math.nan, math.inf, "0.4", None, True):
            value = Interval(low=wrong, high=wrong) if function is typed.interval else wrong
            with pytest.raises(SystemExit, match="is no number"):
                function(value, *arguments)
    too_low = [
        (function, -1.0) for function in (typed.score, typed.seconds, typed.size, typed.loss)
    ]
    for function, wrong in [*too_low, (typed.mean, 43.1), (typed.points, 2.0)]:
        with pytest.raises(SystemExit, match="is no number"):
            function(wrong)
    with pytest.raises(SystemExit, match="no count"):
        typed.count(2.5)
    with pytest.raises(SystemExit, match="is no number"):
        typed.interval(Interval(low=0.5, high=0.4))


# What may stand as a digit in the templates' own text: definitions of the method, names, years. No
# result is among them.
DEFINITIONS = [
    "95 ?%",
    "20%",
    "SHA-256",
    "[Rr]es[Nn]et50",
    "[Dd]ense[Nn]et121",
    "EfficientNet-(Lite0|B0|B3)",
    "Nadeau·Bengio 2003",
    "You 외 2021",
    "macro-F1",
    "K [=+] 1",
    "5겹( × 5번| 교차 검증)?",
    "30(에포크|벌)",
    "4에포크",
    "뷰 (1|4|30)벌",
    "96 px",
    "−1%포인트",
    r"0\.02",
    "시드 (0–9|10–19)",
    "5에포크|5번",
    "15 %",
    "정답의 0[.]1을",
    "10분의 1",
    "0[.]65배",
    "(Kumar|Ben Zaken|Zhang|Yun) 외 20(22|18|19)",
    "Ruder 2018",
    "헤드 100개",
    "300에포크",
    "0의 한쪽",
    "1입니다",
    "2.5–97.5 %",
    "0[.]05보다 작",
    "fp32",
    "bf16",
    "1이면",
    "B[03]",
    r"^\d\. ",
]


@pytest.mark.parametrize("name", ["report.md.j2", "readme_results.md.j2", "words.j2"])
def test_no_number_is_written_by_hand(name):
    """Outside of expressions and commands a template holds no digit but those of definitions, and
    no number skips its type."""
    text = (ROOT / "report" / name).read_text(encoding="utf-8")
    shown = re.findall(r"{{(.*?)}}", text, re.DOTALL)
    assert not [one for one in shown if "format(" in one]
    text = re.sub(r"{{.*?}}|{%.*?%}|`[^`]*`|<!--.*?-->", "", text, flags=re.DOTALL)
    for pattern in DEFINITIONS:
        text = re.sub(pattern, "", text, flags=re.MULTILINE)
    assert not [line.strip() for line in text.splitlines() if re.search(r"\d", line)]


def make_pair(a, b, difference, verdict, *, low=0.01, high=0.95):
    """A pair of a comparison."""
    test = PairedTest(difference=difference, error=0.01, low=low, high=high, p=0.01)
    return PairTest(model_a=a, model_b=b, test=test, resampled=test, p_holm=0.01, verdict=verdict)


def test_a_ranking_without_a_test_is_refused():
    for sentence in (
        "DenseNet121이 ResNet50보다 정확합니다.",
        "B3는 B0보다 4 %p 높습니다.",
        "나머지보다 낫습니다.",
        "It is better.",
    ):
        with pytest.raises(SystemExit, match="ranks without a test"):
            render.check_rankings(f"앞 문장입니다. {sentence} 뒤 문장입니다.", [])
    judged = [render.Claim(text="B3가 B0보다 정확하다", verdict="가릴 수 없음")]
    render.check_rankings("| B3가 B0보다 정확하다 | +1.4 | **가릴 수 없음** |", [], judged)
    claim = judged[0].text
    for elsewhere in (
        f"{claim}.",
        f"| {claim} | **성립** |",
        f"| 훨씬 {claim} | **가릴 수 없음** |",
    ):
        with pytest.raises(SystemExit, match="ranks without a test"):
            render.check_rankings(elsewhere, [], judged)
    pair = make_pair("a", "b", 0.05, "a better", low=0.01, high=0.09)
    assert "a 체크포인트가 b 체크포인트보다 정확합니다" in render.rank(pair)
    render.check_rankings(f"앞 문장입니다. {render.rank(pair)}.", [render.rank(pair)])
    with_zero = replace(pair.test, low=-0.01)
    undecided = render.rank(replace(pair, test=with_zero, verdict="indistinguishable"))
    assert "구별할 수 없습니다" in undecided and not render.RANKS.search(undecided)
    among_many = render.rank(replace(pair, p_holm=0.39, verdict="indistinguishable"))
    assert "보정한 p가 0.390이므로 **구별할 수 없습니다**" in among_many  # beside [+1.0, +9.0]
    assert not render.RANKS.search(among_many)
    for wrong in (replace(pair, test=with_zero), replace(pair, verdict="b better")):
        with pytest.raises(SystemExit, match="does not follow"):
            render.rank(wrong)


def test_a_pair_that_is_alike_or_not_judged_is_not_ranked():
    pair = make_pair("a", "b", 0.05, TOO_FEW_REPEATS, low=0.01, high=0.09)
    not_judged = render.rank(replace(pair, p_holm=None))
    assert not_judged.endswith("판정하지 않습니다") and not render.RANKS.search(not_judged)
    nothing = PairedTest(difference=0, error=0, low=0, high=0, p=1)
    alike = render.rank(replace(pair, test=nothing, p_holm=1, verdict=IDENTICAL))
    assert alike.endswith("**맞힌 이미지가 모두 같습니다**") and not render.RANKS.search(alike)
    for wrong in (pair, replace(pair, verdict=IDENTICAL)):
        with pytest.raises(SystemExit, match="does not follow"):
            render.rank(wrong)


def test_a_run_that_measures_no_transfer_is_named_as_such(context):
    run = context.runs["efficientnet_b0"]
    weights = replace(run.record.backbone, kind="random", label="random", source="random")
    record = replace(run.record, weights=(weights,))
    run = replace(run, record=record)
    line = f"{record.model}: {typed.proportion(record.best.val_acc, record.n_val)}"
    render.check_disclosed(line + " (무작위 초기화)", {"x": run})
    with pytest.raises(SystemExit, match="does not say so"):
        render.check_disclosed(line, {"x": run})
    drawn = replace(record, data=(replace(record.dataset, synthetic=True),))
    with pytest.raises(SystemExit, match="does not say so"):
        render.check_disclosed(line + " (무작위 초기화)", {"x": replace(run, record=drawn)})


def test_a_summary_that_its_predictions_contradict_is_refused(context):
    run = context.runs["resnet50"]
    record = run.record
    history = pd.read_csv(
        ROOT / run.path.replace("_summary_", "_results_").replace(".json", ".csv")
    )
    assert runs.disagreements(record, history) == []
    changed = replace(record, best=replace(record.best, val_acc=64 / 159))
    assert runs.disagreements(changed, history) == ["accuracy"]
    assert runs.disagreements(replace(record, macro_f1=0.4), history) == ["macro_f1"]
    flipped = replace(record, val_predictions=record.val_labels)
    assert {"accuracy", "curve", "macro_f1"} <= set(runs.disagreements(flipped, history))


def test_named_files_and_figures_exist():
    for kind, path in named.read_named_files().paths.items():
        assert (ROOT / path).is_file(), kind
    for name in ("README.md", "experiment_report.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        shown = [part.split(")")[0] for part in text.split("](")[1:] if part.startswith("img/")]
        assert shown and all((ROOT / path).is_file() for path in shown)


OTHER = {"source": "weights of another kind", "kind": "file", "sha256": "f" * 64}


def with_other_weights(path):
    """A run's record as text, said to have been made with other weights."""
    record = read_record(path, StudyRecord)
    return to_json(replace(record, weights=(replace(record.backbone, **OTHER),)))


@pytest.fixture
def other_weights(tmp_path, monkeypatch):
    """The repository as `make publish` would leave it with other weights: the same runs, all said
    to come from them."""
    shutil.copytree(ROOT / "report", tmp_path / "report")
    shutil.copy(ROOT / "README.md", tmp_path)
    files = {}
    for entry in tomllib.loads((ROOT / "report/runs.toml").read_text(encoding="utf-8"))["files"]:
        path = tmp_path / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / entry["path"], path)
        if path.stem.split("_20")[0].endswith("_summary") and entry["notebook"] in runs.MODELS:
            path.write_text(with_other_weights(path), encoding="utf-8")
        files.setdefault(entry["notebook"], []).append(path)
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "RUNS", tmp_path / "report/runs.toml")
    return files


def test_after_a_change_of_weights_nothing_speaks_of_the_old_ones(other_weights, tmp_path):
    other_weights["enough_views"] = []  # made from the values of views
    outdated = publish.drop_outdated(other_weights)
    assert {"views", "engine", "enough_views"} <= set(outdated)
    assert not set(outdated) & set(runs.MODELS)
    publish.write_runs(other_weights)
    for path, text in render.render(sources.load_context(tmp_path)).items():
        if path.name == "README.md":
            text = text.split(render.BEGIN)[1].split(render.END)[0]
        assert "weights of another kind" in text
        assert not re.search("Tiny ImageNet|Apache|PyPI|대체물", text)


def test_a_notebook_is_published_with_gathered_weights(tiny_file, tmp_path, monkeypatch):
    """Its pictures come from a second run, on drawn data."""
    name = "test_resnet.r160_in1k"
    insects = replace(publish.NOTEBOOKS["03"].dataset, draw=lambda folder: folder)
    one = replace(publish.NOTEBOOKS["03"], backbones=(name,), dataset=insects)
    metadata = {"tags": ["shows-images"]}
    cells = [nbformat.v4.new_code_cell("1", metadata=metadata), nbformat.v4.new_code_cell("2")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{one.stem}.ipynb")
    publish.prepare_out_dir(tmp_path)
    given = []

    def notebook(source, copy, parameters):
        assert (Path(parameters["weights"]) / f"{name}.safetensors").samefile(tiny_file)
        given.append(parameters)
        shutil.copy(source, copy)

    monkeypatch.setitem(publish.NOTEBOOKS, "03", one)
    monkeypatch.setattr(publish, "find_data", lambda dataset, data, root: tmp_path / "images")
    monkeypatch.setattr(publish, "run_notebook", notebook)
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert publish.publish_notebook("03", "", str(tiny_file.parent)) == []
    real, drawn = given
    assert real["data_dir"] == str(tmp_path / "images") and real["out_dir"] == ".."
    assert drawn["data_dir"] != real["data_dir"] and not Path(drawn["out_dir"]).exists()
    assert drawn["weights"] == real["weights"] and not real["random_backbones"]
    assert not Path(real["weights"]).exists()


def test_weights_are_found_however_a_file_tells_them(tmp_path):
    told = {
        "name": "resnet50",
        "timm_name": "resnet50",
        "kind": "file",
        "source": "s",
        "sha256": "a" * 64,
    }
    for number, weights in enumerate([{"resnet50": told}, told, {"resnet50": "s"}, "s"]):
        (tmp_path / f"{number}.json").write_text(json.dumps({"weights": weights}))
    found = [publish.weights_of([tmp_path / f"{number}.json"]) for number in range(4)]
    assert found == [{"resnet50": "a" * 64}] * 2 + [{"resnet50": "s"}, {"": "s"}]


def test_random_weights_of_another_processor_are_no_other_weights(tmp_path):
    """The same seed gives a random backbone other tensors there."""
    told = {"name": "vit", "timm_name": "vit", "kind": "random", "source": "random initialisation"}
    for number, digest in enumerate("ab"):
        weights = {"vit": told | {"sha256": digest * 64}}
        (tmp_path / f"{number}.json").write_text(json.dumps({"weights": weights}))
    one, other = (publish.weights_of([tmp_path / f"{number}.json"]) for number in range(2))
    assert one == other
    assert not publish.is_outdated([tmp_path / "0.json"], {"vit": {"random"}})
    assert publish.is_outdated([tmp_path / "0.json"], {"vit": {"c" * 64, "a file"}})


def test_benchmarks_with_the_same_weights_stay_named():
    files = publish.read_runs()
    assert publish.drop_outdated(dict(files)) == []


MACHINE = Machine(
    device="cpu",
    precision="torch.bfloat16",
    processor="p",
    threads=2,
    versions={"torch": "8.8"},
)


def made_up_weights(*names):
    """The same weights under these names."""
    return tuple(
        WeightsInfo(
            name=name, timm_name=name, kind="file", label="m", source="made up", sha256="a" * 64
        )
        for name in names
    )


def write_summary(tmp_path, head):
    """A comparison's record on insects."""
    record = ComparisonRecord(
        head=head,
        data=(DataInfo(name="insects", digest="d"),),
        weights=made_up_weights("a", "b"),
        machine=MACHINE,
        folds=5,
        repeats=5,
        fold_hash="f",
    )
    path = tmp_path / "result/compare_summary_20260101_000000.json"
    path.write_text(to_json(record))


def test_a_comparison_is_named_with_its_head_and_dataset(tmp_path, monkeypatch):
    (tmp_path / "result").mkdir()
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    (tmp_path / "result/compare_metrics_20260101_000000.csv").write_text("model\n")
    write_summary(tmp_path, "probe")
    name, files = publish.name_benchmark("compare_20260101_000000")
    assert name == "compare/insects" and len(files) == 2
    write_summary(tmp_path, "study")
    assert publish.name_benchmark("compare_20260101_000000")[0] == "study_head/insects"
    with pytest.raises(publish.UserError, match="no files of views_20260101_000000"):
        publish.name_benchmark("views_20260101_000000")


def test_the_hash_of_every_named_file_is_its_own():
    for entry in tomllib.loads((ROOT / "report/runs.toml").read_text(encoding="utf-8"))["files"]:
        assert hashlib.sha256((ROOT / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]


# ---- views -----------------------------------------------------------------------------------


def made_up_peers():
    """A benchmark of other tools: of each job one of theirs and one of ours."""
    jobs = {"study": "study", "ours_default": "study", "sklearn": "folds", "ours_probe": "folds"}
    jobs |= {"vyntri": "split", "ours_probe_split": "split"}
    rows = [
        {"system": system, "round": 0, "job": job, "seconds": 30.5, "seconds_total": 40.5}
        | {"peak_memory_mb": 1500.0, "held_out_accuracy": 0.4}
        for system, job in jobs.items()
    ]
    facts = {"settings": {}, "kinds": ["short"], "left_out": []}
    record = BenchmarkRecord(
        kind="peers",
        data=(DataInfo(name="d", digest="digest"),),
        weights=made_up_weights("resnet50"),
        machine=MACHINE,
        facts=facts,
    )
    return measured.Peers(record=record, rows=rows, path="result/peers.csv", ratios=("a / b: 2.5",))


def with_peers(context):
    """The same texts, with them."""
    figures = context.figures | {"peers/img/peers": "img/peers.png"}
    return replace(context, peers=made_up_peers(), figures=figures)


def with_settings(context, **settings):
    """The same report, its runs made with other settings."""
    changed = {}
    for name, run in context.runs.items():
        record = replace(run.record, settings=replace(run.record.settings, **settings))
        changed[name] = replace(run, record=record)
    return replace(context, runs=changed)


def test_it_says_how_views_are_used_under_either_rule(context):
    """Under the rule of the runs, and under the other one; what was measured with other views than
    the runs says so."""
    precision = context.runs["resnet50"].record.machine.precision.removeprefix("torch.")
    fresh = with_settings(context, views=30, rule="cycle")
    report = report_of(fresh)
    assert "증강한 뷰를 30벌까지 그려 에포크마다 하나씩 씁니다. 얼린" in report
    assert f"학습 뷰는 {precision}, 검증 이미지는 fp32로 계산합니다." in report
    assert "돌려 씁니다. 무작위" not in report
    assert "헤드만 학습, 뷰 30벌, 시드" in readme_of(fresh)
    kept = with_settings(context, views=4, rule="clean+cycle")
    report = report_of(kept)
    assert "깨끗한 뷰와 무작위 뷰 4벌을 에포크마다 하나씩 차례로 돌려 씁니다." in report
    assert f"무작위 뷰는 {precision}, 깨끗한 뷰와 검증 이미지는 fp32로 계산합니다." in report
    assert "이 결과를 본 뒤에 정한 대로 깨끗한 뷰와 무작위 뷰 4벌로 한 것입니다." in report
    assert "이 결과가 나오기 전의 값" not in report
    assert "그린 뷰도 많으므로" not in report
    assert "헤드만 학습, 깨끗한 뷰와 무작위 뷰 4벌, 시드" in readme_of(kept)
    with pytest.raises(UndefinedError, match="no attribute 'other'"):
        report_of(with_settings(context, rule="other"))


def study_head_with(both, settings):
    """Comparisons by both heads, the study's trained with these settings."""
    record = replace(both.study.record, settings=settings)
    return replace(both, study=replace(both.study, record=record))


def test_what_was_measured_with_other_views_says_so(context, both_heads):
    """Beside runs of 4 kept views, the study's head with 30 fresh ones."""
    fresh = Settings(views=30, rule="cycle")
    kept = replace(
        with_settings(context, views=4, rule="clean+cycle"),
        compared_faces=study_head_with(both_heads, fresh),
    )
    report = report_of(kept)
    assert "연구의 헤드(뷰 30벌)로는 " in report and "| 연구의 헤드, 뷰 30벌 |" in report
    report = report_of(with_settings(kept, views=30, rule="cycle"))
    assert "연구의 헤드로는 " in report and "| 연구의 헤드 |" in report


FRESH = {"views": 30, "rule": "cycle"}
KEPT = {"views": 4, "rule": "clean+cycle"}


def measured_with(context, benchmark_schema, settings):
    """The same report, all that was measured beside the runs made with these settings."""
    changed = {}
    for name in ("engine", "findings", "scaling", "techniques"):
        found = getattr(context, name)
        record = replace(found.record, settings=Settings(**settings), schema=benchmark_schema)
        changed[name] = replace(found, record=record)
    told = {"ours_default": asdict(Settings(**settings))}
    told_of_peers = with_peers(context)
    changed["peers"] = with_facts(told_of_peers.peers, settings=told)
    return replace(told_of_peers, **changed)


def bullets(context):
    """The lines of the README's results that tell of something beside the runs."""
    starts = ("연구의 발견", "다른 도구")
    lines = [line for line in readme_of(context).splitlines() if line.startswith("- ")]
    return [line for start in starts for line in lines if line.startswith(f"- {start}")]


def test_every_bullet_and_part_says_with_which_other_views_it_was_measured(context):
    """All of the README's bullets and of the table of growth; none of them where runs and the rest
    saw the same views."""
    beside = measured_with(with_settings(context, **KEPT), 2, FRESH)
    assert len(bullets(beside)) == 2
    assert all("뷰 30벌" in line for line in bullets(beside))
    report = report_of(beside)
    for part in (
        "표로 시험했습니다(뷰 30벌):",
        "배가 들었습니다(뷰 30벌).",
        "조기 종료 없음, 뷰 30벌)",
        "기본값만큼(잴 때 뷰 30벌)",
        "| 에포크 (ResNet50 실행 전체, 뷰 30벌) |",
        "| 함께 학습하는 헤드 수 (특징은 주어짐, 뷰 30벌) |",
        "| 겹 × 시드 (특징은 주어짐, 뷰 30벌) |",
    ):
        assert part in report, part
    for same in (FRESH, KEPT):
        alike = measured_with(with_settings(context, **same), 2, same)
        words = "뷰 30벌" if same is FRESH else "깨끗한 뷰와 무작위 뷰 4벌"
        assert not [line for line in bullets(alike) if words in line]
        assert not [line for line in report_of(alike).splitlines() if f"(잴 때 {words}" in line]


def test_what_an_older_record_does_not_say_of_its_views_is_known(context):
    """Engine and scaling, before schema 2; of the peers those of ours_default count."""
    for found in (context.engine, context.scaling):
        old = replace(found.record, schema=1, settings=None)
        assert replace(found, record=old).settings == Settings(**FRESH)
        new = replace(found.record, schema=2, settings=Settings(**KEPT))
        assert replace(found, record=new).settings == Settings(**KEPT)
    told = {"ours_default": asdict(Settings(**FRESH))}
    peers = made_up_peers()
    assert with_facts(peers, settings=told).settings == Settings(**FRESH)
    assert with_facts(peers, settings={}).settings is None


def test_a_goal_is_told_in_the_reports_words():
    line = "best of a, b / ours: 20.10 (median of 3, 19.80 to 20.40); goal 15: met; moonshot 20: "
    told = "가장 빠른 a, b / ours: 20.10 (바퀴 수 3, 19.80–20.40); 목표 15: 이룸; 큰 목표 20: "
    assert measured.in_words(f"{line}missed") == f"{told}못 이룸"


def test_every_system_of_the_peers_has_its_row(context):
    told = with_peers(context)
    lines = report_of(told).splitlines()
    for row in told.peers.rows:
        shown = [line for line in lines if line.startswith(f"| {row['system']} | ")]
        assert shown and ("%" in shown[0]) == (row["job"] != "study"), row["system"]


def test_every_difference_over_seeds_has_its_row_with_and_without_the_peers(context):
    for told in (with_peers(context), replace(context, peers=None)):
        lines = report_of(told).splitlines()
        for row in context.peer_seeds.rows:
            start = f"| {row['ours']} | {row['peer']} | "
            assert [line for line in lines if line.startswith(start)], start


def test_views_that_passed_beforehand_are_named(context):
    views = context.views
    winner = {"scheme": "cycle", "views": 8}
    record = replace(views.record, facts=views.facts | {"winner": winner})
    report = report_of(replace(context, views=replace(views, record=record)))
    assert "그래서 기본값은 **cycle, K = 8** 입니다." in report
    assert "하나도 통과하지 못했습니다" not in report
    assert "| cycle | 8 |" in report and "| cycle | 16 |" not in report


@pytest.fixture
def made_up_enough_views(tmp_path):
    """A benchmark of enough views beside the raw values that it names."""
    folder = tmp_path / "result/benchmarks"
    folder.mkdir(parents=True)
    raw = folder / "views_raw_20260101_000000.npz"
    raw.write_bytes(b"values")
    facts = {
        "raw_sha256": hashlib.sha256(b"values").hexdigest(),
        "reference": asdict(enough_views.REFERENCE),
        "pairs": [{"dataset": "d", "model": name} for name in "abc"],
        "rule": enough_views.RULE,
        "caveats": list(enough_views.CAVEATS),
        "default": asdict(enough_views.DEFAULT),
        "default_passes": True,
    }
    record = BenchmarkRecord(kind="enough_views", data=(), weights=(), machine=MACHINE, facts=facts)
    table = folder / "enough_views_20260101_000000.csv"
    row = asdict(enough_views.DEFAULT) | {
        "points": 0.51,
        "points_low": -0.06,
        "points_high": 1.06,
        "worst_points": -0.33,
        "passes": True,
    }
    pd.DataFrame([row | {"scheme": "clean", "views": 0}, row]).to_csv(table, index=False)
    table.with_suffix(".json").write_text(to_json(record), encoding="utf-8")
    paths = {
        ("views", "benchmarks/views_raw"): f"result/benchmarks/{raw.name}",
        ("enough_views", "benchmarks/enough_views"): f"result/benchmarks/{table.name}",
    }
    return named.Named(root=tmp_path, paths=paths)


def test_the_pooled_result_of_kept_views_is_told_with_its_caveats(context, made_up_enough_views):
    found = measured.read_enough_views(made_up_enough_views)
    lines = report_of(replace(context, enough_views=found)).splitlines()
    (line,) = [line for line in lines if line.startswith("**짝을 모두 합치면.**")]
    assert "짝 3개를 합쳐 cycle+clean(K = 4)의 정확도에서 cycle(K = 30)의 정확도를 빼면" in line
    assert "+0.5 [-0.1, +1.1] %p이고, 짝 하나에서 가장 작은 값은 -0.3 %p입니다." in line
    assert "아래 끝이 −1%포인트보다 크고, 추정값이 −2%포인트 아래인 짝이 없는 것이며" in line
    assert "기준을 통과합니다." in line
    assert "이 자료를 본 뒤에 정했고, 새 자료로 시험하지 않았습니다." in line
    assert "구간은 확률이 아니어서" in line
    assert "짝을 모두 합치면" not in report_of(replace(context, enough_views=None))


def test_a_pooled_result_of_other_values_is_refused(made_up_enough_views):
    root = made_up_enough_views.root
    (table,) = root.glob("result/benchmarks/enough_views_*.csv")
    rows = pd.read_csv(table)
    rows.assign(passes=False).to_csv(table, index=False)
    with pytest.raises(SystemExit, match="disagree on whether the default passes"):
        measured.read_enough_views(made_up_enough_views)
    rows[rows.scheme == "clean"].to_csv(table, index=False)
    with pytest.raises(SystemExit, match="no row of"):
        measured.read_enough_views(made_up_enough_views)
    (raw,) = root.glob("result/benchmarks/views_raw_*.npz")
    raw.write_bytes(b"other values")
    with pytest.raises(SystemExit, match="made from other values"):
        measured.read_enough_views(made_up_enough_views)
    kept = {key: path for key, path in made_up_enough_views.paths.items() if key[0] != "views"}
    assert measured.read_enough_views(named.Named(root=root, paths=kept)) is None


# ---- techniques ------------------------------------------------------------------------------


def with_facts(benchmark, rows=None, **facts):
    """A benchmark with other rows or facts."""
    record = replace(benchmark.record, facts=benchmark.facts | facts)
    return replace(benchmark, record=record, rows=benchmark.rows if rows is None else rows)


def made_up_techniques(repeats=3):
    """Of 40 images the exact probe has half right, full fine-tuning three quarters, and MixUp what
    full fine-tuning has but in the last repeat."""
    labels = np.arange(40) % 2
    half = np.where(np.arange(40) < 20, labels, -1)
    most = np.where(np.arange(40) < 30, labels, -1)
    worse = [most] * (repeats - 1) + [half] if repeats > 1 else [most]
    found = {
        technique_scores.EXACT_PROBE: [half] * repeats,
        technique_scores.PROBE_AT_224: [half] * repeats,
        "full fine-tuning": [most] * repeats,
        "MixUp": worse,
    }
    predicted = {
        technique_scores.Place(kind="tuned", dataset="d", model="m", technique=name): np.array(rows)
        for name, rows in found.items()
    }
    return technique_scores.pack_predictions(predicted, {"d": labels})


def write_techniques(root, name="techniques", repeats=3, raw=True, **facts):
    """A benchmark of techniques in files, its counts from `made_up_techniques` -> what is named
    of it."""
    folder = root / "result/benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = made_up_techniques(repeats)
    correct = technique_scores.read_correct(arrays)
    rows = [
        asdict(place)
        | {"repeat": repeat, "fold": fold, "correct": int(part.sum()), "n": len(part)}
        | {"macro_f1": 0.5, "seconds": 9.5, "trainable": 1234, "epochs": 10}
        for place, right in correct.items()
        for repeat, its in enumerate(right)
        for fold, part in enumerate(np.split(its, 5))
    ]
    left_out = {
        "without_weights": ["vit"],
        "incomplete": [{"kind": "tuned", "dataset": "d", "model": "m", "techniques": ["CutMix"]}],
    }
    record = BenchmarkRecord(
        kind=name,
        data=(DataInfo(name="d", digest="digest"),),
        weights=made_up_weights("m"),
        machine=MACHINE,
        settings=Settings(),
        facts={"folds": 5, "size": 112, "epochs": 10, "left_out": left_out} | facts,
    )
    stamp = "20260101_000000"
    table = folder / f"{name}_{stamp}.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    table.with_suffix(".json").write_text(to_json(record), encoding="utf-8")
    paths = {(name, f"benchmarks/{name}"): f"result/benchmarks/{table.name}"}
    if raw:
        np.savez_compressed(folder / f"{name}_raw_{stamp}.npz", **arrays)
        tests = [test.row() for test in technique_scores.all_tests(correct)]
        pd.DataFrame(tests).to_csv(folder / f"{name}_tests_{stamp}.csv", index=False)
        paths[name, f"benchmarks/{name}_raw"] = f"result/benchmarks/{name}_raw_{stamp}.npz"
        paths[name, f"benchmarks/{name}_tests"] = f"result/benchmarks/{name}_tests_{stamp}.csv"
    return named.Named(root=root, paths=paths)


def render_techniques(context, techniques, techniques_gpu=None):
    """The README and the lines of the report, with these two benchmarks."""
    drawn = {f"{name}/img/{name}": f"img/{name}.png" for name in ("techniques", "techniques_gpu")}
    told = replace(
        context,
        techniques=techniques,
        techniques_gpu=techniques_gpu,
        figures=context.figures | drawn,
    )
    return readme_of(told), report_of(told).splitlines()


def test_the_one_question_on_techniques_is_answered_first(context, tmp_path):
    found = technique_results.read_techniques(write_techniques(tmp_path), "techniques")
    readme, lines = render_techniques(context, found)
    (test,) = found.headlines
    told = f"{typed.points(test.test.low)}, {typed.points(test.test.high)}"
    (line,) = [line for line in lines if line.startswith("- d: full fine-tuning의 정확도에서")]
    assert f"exact probe의 정확도를 빼면 +25.0 [{told}] %p입니다(m, 되풀이 3번, p = " in line
    assert line.endswith("**구별됩니다.**")
    assert f"(112픽셀, m) +25.0 %p [{told}]: 구별됨." in readme
    (pooled,) = [line for line in lines if line.startswith("| d | full fine-tuning | m | 3 |")]
    assert pooled.count(f"+25.0 [{told}], **높음**") == 2  # less the probes of both sizes
    (row,) = [line for line in lines if line.startswith("| d | m | MixUp |")]
    assert "| 66.7 % |" in row and "(full fine-tuning)" in row and row.endswith("| 1,234 | 9.5 |")
    (probe,) = [line for line in lines if line.startswith("| d | m | exact probe |")]
    assert "| 50.0 % |" in probe and "| 기준 |" in probe
    assert "- d, m: CutMix. 겹을 다 채우지 못했습니다." in lines
    assert "![전이 기법](img/techniques.png)" in lines


def test_one_repeat_gets_no_verdict(context, tmp_path):
    named_files = write_techniques(tmp_path, repeats=1)
    readme, lines = render_techniques(
        context, technique_results.read_techniques(named_files, "techniques")
    )
    (line,) = [line for line in lines if line.startswith("- d: full fine-tuning의 정확도에서")]
    assert "학습의 흔들림을 담지 않았으므로 판정하지 않습니다" in line and "p = " not in line
    assert "되풀이가 적어 판정하지 않음" in readme
    (pooled,) = [line for line in lines if line.startswith("| d | full fine-tuning | m | 1 |")]
    assert "(학습의 흔들림 제외)" in pooled and "높음" not in pooled
    assert [line for line in lines if line.startswith("| d | m | MixUp | 75.0 % (30/40) |")]


def test_counts_alone_carry_no_test(context, tmp_path):
    """As a GPU has left them, beside what has predictions."""
    here = technique_results.read_techniques(write_techniques(tmp_path), "techniques")
    counts = write_techniques(tmp_path, "techniques_gpu", raw=False, processes=7)
    gpu = technique_results.read_techniques(counts, "techniques_gpu")
    machine = replace(MACHINE, device="cuda", processor="a GPU")
    gpu = replace(gpu, record=replace(gpu.record, machine=machine))
    assert gpu.tests == () and gpu.headlines == []
    _, lines = render_techniques(context, here, gpu)
    (place,) = [n for n, line in enumerate(lines) if "기법, GPU** (a GPU; 프로세스 7개가" in line]
    assert lines[place + 2].startswith("이미지마다의 예측을 남기지 않고 맞힌 수만 남겼으므로")
    (row,) = [line for line in lines[place:] if line.startswith("| d | m | full fine-tuning |")]
    assert row.endswith("|  |  | 1,234 |")  # neither tests nor seconds, which seven shared
    assert "![전이 기법, GPU](img/techniques_gpu.png)" in lines[place:]
    assert technique_results.read_techniques(counts, "techniques") is None


@pytest.mark.parametrize("what", ["csv", "tests"])
def test_techniques_that_do_not_follow_from_their_predictions_are_refused(tmp_path, what):
    files = write_techniques(tmp_path)
    kind = "benchmarks/techniques_tests" if what == "tests" else "benchmarks/techniques"
    path = files.file("techniques", kind)
    table = pd.read_csv(path)
    column = "difference" if what == "tests" else "correct"
    table[column] = table[column] - table[column].max() / 50 if what == "tests" else 3
    table.to_csv(path, index=False)
    told = "does not follow from its predictions" if what == "tests" else "its predictions give"
    with pytest.raises(SystemExit, match=told):
        technique_results.read_techniques(files, "techniques")


# ---- comparisons -----------------------------------------------------------------------------


N = 60
K = 3
CLASSES = ("ants", "bees")
SHARES = {"resnet50": 0.5, "densenet121": 0.6, "efficientnet_lite0": 0.97, "b": 0.95}
BASELINES = {
    "densenet121, k-NN": 0.5,
    "efficientnet_lite0, zero-shot": 0.9,
    "majority class": 0.5,
}
LABELS = np.arange(N) % 2


def made_up_folds(repeats):
    """Three folds, in every repeat others."""
    images = torch.arange(N)
    folds = []
    for repeat in range(repeats):
        numbers = images.roll(7 * repeat) % K
        for number in range(K):
            fold = HeldOutFold(
                train=images[numbers != number],
                val=images[:0],
                test=images[numbers == number],
                repeat=repeat,
                number=number,
            )
            folds.append(fold)
    return Folds(folds=tuple(folds), k=K, repeats=repeats)


def made_up_predictions(shares, repeats, seed):
    """{name: predictions} that are right on about these shares of the images."""
    random = np.random.default_rng(seed)
    found = {}
    for name, share in shares.items():
        asked = 1 if name.endswith("zero-shot") else repeats
        right = random.random((asked, N)) < share
        of_true = np.where(right, 0.8, 0.3) + 0.1 * random.random((asked, N))
        of_bees = np.where(LABELS == 1, of_true, 1 - of_true)
        probabilities = np.stack([1 - of_bees, of_bees], axis=2)
        found[name] = Predictions(probabilities=probabilities.astype(np.float32))
    return found


def write_made_up(root, kind, repeats=3):
    """Writes a comparison as the command does -> {(place, kind of file): path}."""
    head = comparisons.HEADS[kind]
    folds = made_up_folds(repeats)
    models = made_up_predictions(SHARES, repeats, len(kind))
    found = models | (made_up_predictions(BASELINES, repeats, 0) if head == "probe" else {})
    scores = [
        score_model(
            name, one, LABELS, baseline=name in BASELINES, weights="made up", folds=len(folds)
        )
        for name, one in found.items()
    ]
    image_set = SimpleNamespace(
        name="d", classes=CLASSES, labels=torch.from_numpy(LABELS), paths=[f"{i}" for i in range(N)]
    )
    task = SimpleNamespace(folds=folds, prefix=Path("train"))
    tables = {
        "metrics": pd.DataFrame([replace(one, seconds=2.5).row() for one in scores]),
        "pairs": pd.DataFrame([pair.row() for pair in compare_pairs(models, LABELS, folds)]),
        "predictions": prediction_table(
            SimpleNamespace(image_set=image_set, task=task, found=found)
        ),
    }
    record = ComparisonRecord(
        head=head,
        data=(DataInfo(name="d", digest="digest", n=N, classes=CLASSES),),
        weights=made_up_weights(*SHARES),
        machine=MACHINE,
        settings=None if head == "probe" else Settings(),
        folds=K,
        repeats=repeats,
        fold_hash="f",
    )
    (root / kind).mkdir()
    (root / f"{kind}/summary.json").write_text(to_json(record), encoding="utf-8")
    paths = {(f"{kind}/d", "summary/compare"): f"{kind}/summary.json"}
    for name, table in tables.items():
        table.to_csv(root / f"{kind}/{name}.csv", index=False)
        paths[f"{kind}/d", f"result/compare_{name}"] = f"{kind}/{name}.csv"
    return paths


def made_up_heads(root, repeats=3):
    """Comparisons by both heads, named."""
    paths = write_made_up(root, "compare", repeats) | write_made_up(root, "study_head", repeats)
    return named.Named(root=root, paths=paths)


@pytest.fixture
def made_up(tmp_path):
    return made_up_heads(tmp_path)


@pytest.fixture(scope="module")
def both_heads(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    return comparisons.read_both_heads(made_up_heads(root), "d")


def test_a_comparison_is_computed_again_from_its_predictions(both_heads):
    found = made_up_predictions(SHARES, 3, len("compare"))
    compared = both_heads.probe
    assert compared.pairs == tuple(compare_pairs(found, LABELS, made_up_folds(3)))
    for name, one in found.items():
        again = score_model(name, one, LABELS, baseline=False, weights="", folds=9)
        assert compared.of(name) == again
    assert [one.model for one in compared.scores] == [*SHARES, *BASELINES]
    assert compared.models[0].model == "efficientnet_lite0"  # as they rank, not as they were asked
    pair = compared.pair("densenet121", "resnet50")
    assert (pair.model_a, pair.model_b) == ("resnet50", "densenet121")
    with pytest.raises(SystemExit, match="vit was not compared on d"):
        compared.of("vit")
    with pytest.raises(SystemExit, match="vit and b were not compared on d"):
        compared.pair("vit", "b")


def change_table(made_up, name, change):
    """Changes a table of the comparison by the probe."""
    path = made_up.root / f"compare/{name}.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


OTHERS = {
    "metrics": [
        *(f"{name}{end}" for name in ("accuracy", "log_loss") for end in ("", "_low", "_high")),
        *("brier", "macro_f1_high", "ece", "n", "folds", "baseline"),
    ],
    "pairs": [
        *("difference", "error", "low", "high", "p", "p_holm", "detectable"),
        *("images_for_1_points", "images_for_5_points", "verdict"),
        *("t_error", "t_low", "t_high", "t_p"),
    ],
}


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name, columns in OTHERS.items() for column in columns]
)
def test_a_table_that_does_not_follow_from_its_predictions_is_refused(made_up, name, column):
    """One value in the second row: another one, or none."""

    def change(table):
        value = table.loc[1, column]
        if column == "baseline":
            table.loc[1, column] = not value
        elif column == "verdict":
            table.loc[1, column] = f"{table.model_a[1]} better"
        else:
            table.loc[1, column] = value + (1 if float(value).is_integer() else 2e-5)
        return table

    change_table(made_up, name, change)
    with pytest.raises(SystemExit, match=rf" {column} .* does not follow from its predictions"):
        comparisons.read_both_heads(made_up, "d")
    change_table(made_up, name, lambda table: table.drop(columns=column))
    with pytest.raises(SystemExit, match=rf" {column} None does not follow"):
        comparisons.read_both_heads(made_up, "d")


def test_a_verdict_that_the_test_does_not_give_is_refused(made_up):
    def change(table):
        table.loc[table.verdict == "indistinguishable", "p_holm"] = None
        return table

    change_table(made_up, "pairs", change)
    with pytest.raises(SystemExit, match="p_holm None does not follow"):
        comparisons.read_both_heads(made_up, "d")


@pytest.mark.parametrize("name", ["metrics", "pairs"])
def test_a_table_with_other_rows_is_refused(made_up, name):
    """One row less, the first one twice, another name; in another order they are the same."""
    path = made_up.root / f"compare/{name}.csv"
    table = pd.read_csv(path)
    column = table.columns[0]
    renamed = table.assign(**{column: ["vit", *table[column][1:]]})
    for other in (table[1:], pd.concat([table, table[:1]]), renamed):
        other.to_csv(path, index=False)
        with pytest.raises(SystemExit, match="has other rows"):
            comparisons.read_both_heads(made_up, "d")
    table[::-1].to_csv(path, index=False)
    assert comparisons.read_both_heads(made_up, "d")


def flip(table):
    """Another class predicted than the probabilities say."""
    table.loc[3, "predicted"] = "ants" if table.predicted[3] == "bees" else "bees"
    return table


def rename(table):
    """Another image."""
    table.loc[5, "path"] = "train/elsewhere"
    return table


def relabel(table):
    """Another label."""
    table.loc[N, "label"] = "bees"
    return table


def move(table):
    """Another fold."""
    table.loc[2 * N, "fold"] = 1 - table.fold[2 * N]
    return table


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flip, "in repeat 0 are not of the most probable classes"),
        (rename, "resnet50 on d in repeat 1 are not of the 60 images"),
        (relabel, "resnet50 on d in repeat 1 are not of the 60 images"),
        (move, "densenet121 on d in repeat 2 are of other folds"),
        (lambda table: table[table.index % N < 50], "are not of the 60 images"),
        (lambda table: table[N:], r"resnet50 on d: predictions of \[.*1.*2.*\], not repeats"),
        (lambda table: table[table.model != "b"], r"b on d: predictions of \[\], not repeats"),
    ],
)
def test_predictions_of_other_images_folds_or_models_are_refused(made_up, change, reason):
    change_table(made_up, "predictions", change)
    with pytest.raises(SystemExit, match=reason):
        comparisons.read_both_heads(made_up, "d")


def change_record(made_up, kind, **changes):
    """Changes a comparison's record."""
    path = made_up.root / f"{kind}/summary.json"
    path.write_text(to_json(replace(read_record(path, ComparisonRecord), **changes)))


def test_two_heads_stand_side_by_side_only_where_all_else_is_the_same(made_up):
    other = replace(made_up_weights("b")[0], sha256="b" * 64)
    weights = (*made_up_weights(*SHARES)[:3], other)
    data = DataInfo(name="d", digest="other", n=N, classes=CLASSES)
    for changes in ({"fold_hash": "g"}, {"weights": weights}, {"data": (data,)}):
        path = made_up.root / "study_head/summary.json"
        before = path.read_text(encoding="utf-8")
        change_record(made_up, "study_head", **changes)
        with pytest.raises(SystemExit, match="are of other images, folds or weights"):
            comparisons.read_both_heads(made_up, "d")
        path.write_text(before, encoding="utf-8")
    change_record(made_up, "compare", head="study")
    with pytest.raises(SystemExit, match="is of the head 'study'"):
        comparisons.read_both_heads(made_up, "d")
    for kind in comparisons.HEADS:
        paths = {key: path for key, path in made_up.paths.items() if key[0] != f"{kind}/d"}
        assert comparisons.read_both_heads(named.Named(root=made_up.root, paths=paths), "d") is None


def test_both_heads_stand_in_one_table(context, both_heads):
    """In the order of the ranking, the tied ones marked; the test of two models by either head."""
    told = replace(context, compared_faces=both_heads, compared_insects=None)
    lines = report_of(told).splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("| 데이터 | 모델 | 로지스틱"))
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[place + 2 :][:4]]
    assert not lines[place + 6]
    tied = {row[1]: row[4] for row in shown}
    assert tied == {"efficientnet_lite0": "○", "b": "○", "densenet121": "", "resnet50": ""}
    assert [row[1] for row in shown] == [one.model for one in both_heads.probe.models]
    for row in shown:
        scores = [one.of(row[1]) for one in (both_heads.probe, both_heads.study)]
        values = [typed.mean(one.accuracy) for one in scores]
        intervals = [typed.interval(one.accuracy_interval) for one in scores]
        assert row == ["d", row[1], values[0], intervals[0], row[4], values[1], intervals[1], "m"]
    (line,) = [line for line in lines if line.startswith("**held-out 프로토콜에서.**")]
    for head, one in (("로지스틱 회귀", both_heads.probe), ("연구의 헤드", both_heads.study)):
        assert f"{head}로는 {render.rank(one.pair('resnet50', 'densenet121'))}." in line
    report = "\n".join(lines)
    assert f"densenet121 {typed.mean(both_heads.probe.of('densenet121').accuracy)}이고" in report
    assert "알아볼 수 있었을 가장 작은 차이는" in report
    assert "- 교차 검증(로지스틱 회귀, 층화 3겹 × 3번, 60장): " in readme_of(told)
    assert "깨끗한 뷰의 특징은 bf16" not in report
    machine = replace(MACHINE, clean_precision="torch.bfloat16")
    record = replace(both_heads.probe.record, machine=machine)
    rounded = replace(both_heads, probe=replace(both_heads.probe, record=record))
    assert "층화 3겹 × 3번, 깨끗한 뷰의 특징은 bf16, 값은" in report_of(
        replace(told, compared_faces=rounded)
    )
    without = replace(told, compared_faces=None)
    assert "## 10. 여러 구조" not in report_of(without) and "교차 검증(" not in readme_of(without)


def test_random_weights_are_told_as_such_beside_others(context, both_heads):
    weights = both_heads.probe.record.weights
    random = replace(weights[0], kind="random", label="random")
    record = replace(both_heads.probe.record, weights=(random, *weights[1:]))
    both = replace(both_heads, probe=replace(both_heads.probe, record=record))
    report = report_of(replace(context, compared_faces=both, compared_insects=None))
    (line,) = [line for line in report.splitlines() if line.startswith("| d | resnet50 |")]
    assert "measures no transfer" in line


def test_baselines_of_one_backbone_stand_beside_it(context, both_heads):
    told = replace(context, compared_faces=None, compared_insects=both_heads)
    lines = report_of(told).splitlines()
    place = lines.index("held-out 프로토콜(로지스틱 회귀, 두 나눔을 합친 60장)과 기준선:")
    names = ["efficientnet_lite0", "efficientnet_lite0, zero-shot", "majority class"]
    shown = lines[place + 4 : place + 7]
    assert [line.split("|")[1].strip() for line in shown] == names and not lines[place + 7]


def test_what_too_few_repeats_give_is_no_headline(context, tmp_path):
    few = comparisons.read_both_heads(made_up_heads(tmp_path, repeats=2), "d")
    told = replace(context, compared_faces=few, compared_insects=None)
    report = report_of(told)
    assert "교차 검증으로" not in report and "교차 검증(" not in readme_of(told)
    assert report.count("판정하지 않습니다") == 2 and "○" not in report


def test_the_overview_shows_faces_by_the_probe(context, both_heads):
    """Of random weights it says so; without a comparison the study's split."""
    told = replace(context, compared_faces=both_heads)
    left = overview.draw_overview(told).axes[0]
    assert left.get_title() == "faces, held-out folds by the probe, n = 60: indistinguishable"
    names = ("resnet50", "densenet121")
    shown = [text.get_text() for text in left.texts if re.fullmatch(r"\d+[.]\d", text.get_text())]
    assert shown == [f"{100 * both_heads.probe.of(name).accuracy:.1f}" for name in names]
    weights = both_heads.probe.record.weights
    random = tuple(replace(info, kind="random") for info in weights)
    record = replace(both_heads.probe.record, weights=random)
    marks = overview.marks_of_models(replace(both_heads.probe, record=record), names)
    assert [mark.random for mark in marks] == [True, True]
    left = overview.draw_overview(replace(context, compared_faces=None)).axes[0]
    assert left.get_title().startswith("faces, study's split, n = ")
    plt.close("all")


def test_confusions_as_frequent_as_the_third_are_told():
    labels = [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 1]
    predictions = [1, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    found = runs.describe_errors(labels, predictions, ["a", "b", "c"])
    pairs = [(one.true, one.guess, one.n) for one in found.pairs]
    assert pairs == [("a", "b", 3), ("a", "c", 2), ("b", "a", 2), ("c", "b", 2)]
    assert not runs.describe_errors([0, 1], [0, 1], ["a", "b"]).pairs
