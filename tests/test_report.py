"""The report is what its runs say: rendered again byte for byte, refused where a file, a number or a sentence is wrong."""

import copy
import hashlib
import json
import math
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "report"), str(ROOT / "tools")]
import publish  # noqa: E402 - scripts beside what they work on, not a package
import render  # noqa: E402
import sources  # noqa: E402
import typed  # noqa: E402


@pytest.fixture
def context():
    return sources.load_context()


def test_rendered_again_it_is_the_same(context):
    for path, text in render.render(context).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make report`"
    assert render.drawn_source() == render.overview_source(), (
        "the overview figure is stale: run `make report`"
    )


def test_a_touched_result_is_refused(tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    (tmp_path / "result").mkdir()
    named = tmp_path / "result/resnet50_summary_20260101_000000.json"
    named.write_text('{"best": 0.41}')
    runs = f'[[files]]\nnotebook = "01"\npath = "result/{named.name}"\nsha256 = "{"0" * 64}"\n'
    (tmp_path / "report/runs.toml").write_text(runs)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="has changed since it was published"):
        sources.read_named_files()
    named.unlink()
    with pytest.raises(SystemExit, match="missing"):
        sources.read_named_files()


def test_numbers_are_what_they_claim_to_be():
    assert typed.proportion(64 / 159, 159) == "40.3 % (64/159)"
    assert typed.mean(0.34549) == "34.5 %" and typed.interval((0.1, 0.25)) == "10.0–25.0 %"
    assert (
        typed.points(-0.0123) == "-1.2"
        and typed.score(0.2273) == "0.227"
        and typed.signed(1.5) == "+1.500"
    )
    assert (
        typed.ratio(0.712) == "0.71"
        and typed.ratio(0.00032) == "0.00032"
        and typed.exact(0.001) == "0.001"
    )
    assert (
        typed.seconds(231.4) == "231"
        and typed.amount(1289.7) == "1,290"
        and typed.count(7482247.0) == "7,482,247"
    )
    with pytest.raises(SystemExit, match="no proportion of 159"):
        typed.proportion(0.4312, 159)
    for function in typed.FILTERS:
        arguments = (159,) if function is typed.proportion else ()
        for wrong in (math.nan, math.inf, "0.4", None, True):
            with pytest.raises(SystemExit, match="is no number"):
                function((wrong, wrong) if function is typed.interval else wrong, *arguments)
    too_low = [
        (function, -1.0) for function in (typed.score, typed.seconds, typed.size, typed.loss)
    ]
    for function, wrong in [*too_low, (typed.mean, 43.1), (typed.points, 2.0)]:
        with pytest.raises(SystemExit, match="is no number"):
            function(wrong)
    with pytest.raises(SystemExit, match="no count"):
        typed.count(2.5)
    with pytest.raises(SystemExit, match="is no number"):
        typed.interval((0.5, 0.4))


# What may stand as a digit in the templates' own text: definitions of the method, names, years. No result is among them.
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
    "1, 2, 3, 5 %p",
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
    "양쪽 5 %, 검정력 80 %",
    "fp32",
    "1이면",
    "B[03]",
    r"^\d\. ",
]


@pytest.mark.parametrize("name", ["report.md.j2", "readme_results.md.j2"])
def test_no_number_is_written_by_hand(name):
    """Outside of expressions and commands a template holds no digit but those of definitions, and no number skips its type."""
    text = (ROOT / "report" / name).read_text(encoding="utf-8")
    shown = [expression for expression in re.findall(r"{{(.*?)}}", text, re.DOTALL)]
    assert not [one for one in shown if "format(" in one]
    text = re.sub(r"{{.*?}}|{%.*?%}|`[^`]*`|<!--.*?-->", "", text, flags=re.DOTALL)
    for pattern in DEFINITIONS:
        text = re.sub(pattern, "", text, flags=re.MULTILINE)
    assert not [line.strip() for line in text.splitlines() if re.search(r"\d", line)]


def test_a_ranking_without_a_test_is_refused(context):
    for sentence in (
        "DenseNet121이 ResNet50보다 정확합니다.",
        "B3는 B0보다 4 %p 높습니다.",
        "나머지보다 낫습니다.",
        "It is better.",
    ):
        with pytest.raises(SystemExit, match="ranks without a test"):
            render.check_rankings(f"앞 문장입니다. {sentence} 뒤 문장입니다.", [])
    judged = [("B3가 B0보다 정확하다", "가릴 수 없음")]
    render.check_rankings("| B3가 B0보다 정확하다 | +1.4 | **가릴 수 없음** |", [], judged)
    claim = judged[0][0]
    for elsewhere in (
        f"{claim}.",
        f"| {claim} | **성립** |",
        f"| 훨씬 {claim} | **가릴 수 없음** |",
    ):
        with pytest.raises(SystemExit, match="ranks without a test"):
            render.check_rankings(elsewhere, [], judged)
    pair = {
        "model_a": "a",
        "model_b": "b",
        "difference": 0.05,
        "low": 0.01,
        "high": 0.09,
        "verdict": "a better",
    }
    assert "a 체크포인트가 b 체크포인트보다 정확합니다" in render.rank(pair)
    render.check_rankings(f"앞 문장입니다. {render.rank(pair)}.", [render.rank(pair)])
    undecided = pair | {"low": -0.01, "verdict": "indistinguishable"}
    assert "구별할 수 없습니다" in render.rank(undecided) and not render.RANKS.search(
        render.rank(undecided)
    )
    for wrong in ({"low": -0.01}, {"verdict": "b better"}):
        with pytest.raises(SystemExit, match="does not follow"):
            render.rank(pair | wrong)


def test_a_run_that_measures_no_transfer_is_named_as_such(context):
    run = next(run for run in context["runs"].values() if run["weights"]["kind"] == "random")
    line = f"{run['model']}: {typed.proportion(run['best']['val_acc'], run['n_val'])}"
    render.check_disclosed(line + " (무작위 초기화)", context["runs"])
    with pytest.raises(SystemExit, match="does not say so"):
        render.check_disclosed(line, context["runs"])
    with pytest.raises(SystemExit, match="does not say so"):
        render.check_disclosed(line + " (무작위 초기화)", {"x": run | {"synthetic": True}})


def test_a_summary_that_its_predictions_contradict_is_refused(context):
    run = context["runs"]["resnet50"]
    history = pd.read_csv(
        ROOT / run["path"].replace("_summary_", "_results_").replace(".json", ".csv")
    )
    assert sources.disagreements(run, history) == []
    changed = copy.deepcopy(run)
    changed["best"]["val_acc"] = 64 / 159
    assert sources.disagreements(changed, history) == ["accuracy"]
    assert sources.disagreements(run | {"macro_f1": 0.4}, history) == ["macro_f1"]
    flipped = run | {"val_predictions": run["val_labels"]}
    assert {"accuracy", "curve", "macro_f1"} <= set(sources.disagreements(flipped, history))


def test_named_files_and_figures_exist():
    for kind, path in sources.read_named_files().items():
        assert (ROOT / path).is_file(), kind
    for name in ("README.md", "experiment_report.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        shown = [part.split(")")[0] for part in text.split("](")[1:] if part.startswith("img/")]
        assert shown and all((ROOT / path).is_file() for path in shown)


@pytest.fixture
def other_weights(tmp_path, monkeypatch):
    """The repository as `make publish` would leave it with other weights: the same runs, all said to come from them."""
    shutil.copytree(ROOT / "report", tmp_path / "report")
    shutil.copy(ROOT / "README.md", tmp_path)
    files = {}
    for entry in tomllib.loads((ROOT / "report/runs.toml").read_text(encoding="utf-8"))["files"]:
        path = tmp_path / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / entry["path"], path)
        if path.stem.split("_20")[0].endswith("_summary") and entry["notebook"] in sources.MODELS:
            summary = json.loads(path.read_text(encoding="utf-8"))
            summary["weights"] |= {
                "source": "weights of another kind",
                "kind": "file",
                "sha256": "f" * 64,
            }
            path.write_text(json.dumps(summary), encoding="utf-8")
        files.setdefault(entry["notebook"], []).append(path)
    for module in (sources, render, publish):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "RUNS", tmp_path / "report/runs.toml")
    return files


def test_after_a_change_of_weights_nothing_speaks_of_the_old_ones(other_weights):
    outdated = publish.drop_outdated(other_weights)
    assert {"views", "engine"} <= set(outdated) and not set(outdated) & set(sources.MODELS)
    publish.write_runs(other_weights)
    for path, text in render.render(sources.load_context()).items():
        if path.name == "README.md":
            text = text.split(render.BEGIN)[1].split(render.END)[0]
        assert "weights of another kind" in text
        assert not re.search("Tiny ImageNet|Apache|PyPI|대체물", text)


def test_weights_are_found_however_a_file_tells_them(tmp_path):
    told = {"name": "resnet50", "source": "s", "sha256": "a" * 64}
    for number, weights in enumerate([{"resnet50": told}, told, {"resnet50": "s"}, "s"]):
        (tmp_path / f"{number}.json").write_text(json.dumps({"weights": weights}))
    found = [publish.weights_of([tmp_path / f"{number}.json"]) for number in range(4)]
    assert found == [{"resnet50": "a" * 64}] * 2 + [{"resnet50": "s"}, {"": "s"}]


def test_benchmarks_with_the_same_weights_stay_named():
    files = publish.read_runs()
    assert publish.drop_outdated(dict(files)) == []


def test_a_comparison_is_named_with_its_dataset(tmp_path, monkeypatch):
    (tmp_path / "result").mkdir()
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    for part, text in (("summary", '{"data": "insects"}'), ("metrics", "model\n")):
        (
            tmp_path
            / f"result/compare_{part}_20260101_000000.{'json' if part == 'summary' else 'csv'}"
        ).write_text(text)
    name, files = publish.name_benchmark("compare_20260101_000000")
    assert name == "compare/insects" and len(files) == 2
    three = json.dumps({"data": "insects", "weights": dict.fromkeys("abc", {})})
    (tmp_path / "result/compare_summary_20260101_000000.json").write_text(three)
    assert publish.name_benchmark("compare_20260101_000000")[0] == "architectures/insects"
    with pytest.raises(publish.UserError, match="no files of views_20260101_000000"):
        publish.name_benchmark("views_20260101_000000")


def test_the_hash_of_every_named_file_is_its_own():
    for entry in tomllib.loads((ROOT / "report/runs.toml").read_text(encoding="utf-8"))["files"]:
        assert hashlib.sha256((ROOT / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]


@pytest.fixture
def made_up_techniques():
    """A measurement: full fine-tuning gains on every fold, biases vary, MixUp loses it again, CutMix was interrupted."""
    folds = {
        "linear probe": [60, 61, 59, 60, 62],
        "full fine-tuning": [70, 72, 69, 70, 71],
        "biases only": [60, 62, 58, 60, 63],
    }
    folds |= {"MixUp": [60, 62, 61, 60, 61], "CutMix": [70, 71, 70]}
    rows = [
        {
            "kind": "tuned",
            "dataset": "d",
            "model": "m",
            "technique": name,
            "fold": fold,
            "correct": k,
            "n": 80,
            "macro_f1": 0.5,
            "seconds": 9.5,
            "trainable": 1234,
            "epochs": 10,
        }
        for name, counts in folds.items()
        for fold, k in enumerate(counts)
    ]
    return {
        "rows": rows,
        "path": "result/benchmarks/techniques.csv",
        "folds": 5,
        "size": 112,
        "epochs": 10,
        "processor": "p",
        "threads": 2,
        "settings": {"epochs": 30},
        "weights": {"m": {"kind": "file", "source": "made up"}},
        "data": {"d": "digest"},
        "versions": {"torch": "8.8"},
        "left_out": {
            "without_weights": ["vit"],
            "pairs": [{"dataset": "d", "models": ["n"]}],
            "incomplete": [
                {"kind": "tuned", "dataset": "d", "model": "m", "techniques": ["MixUp", "CutMix"]}
            ],
        },
    }


def render_techniques(context, monkeypatch, found):
    """The README and the lines of the report, with the benchmarks `found` by name."""
    found = {"techniques": None, "techniques_gpu": None} | found
    monkeypatch.setattr(
        sources, "read_benchmark", lambda named, name: found[name] and {**found[name]}
    )
    drawn = {f"{name}/img/{name}": f"img/{name}.png" for name in found}
    told = context | {
        "techniques": sources.read_techniques({}),
        "figures": context["figures"] | drawn,
    }
    rendered = render.render(told)
    return rendered[ROOT / "README.md"], rendered[ROOT / "experiment_report.md"].splitlines()


def test_techniques_are_judged_by_paired_tests(context, monkeypatch, made_up_techniques):
    """A technique that gains on every fold is told apart, one that varies is not."""
    readme, lines = render_techniques(context, monkeypatch, {"techniques": made_up_techniques})
    assert (
        "백본까지 학습하는 기법 full fine-tuning 1/0/0, biases only 0/0/1, MixUp 0/0/1." in readme
    )
    names = ["linear probe", "full fine-tuning", "biases only", "MixUp", "CutMix"]
    shown = {
        name: next(line for line in lines if line.startswith(f"| d | m | {name} |"))
        for name in names
    }
    full = shown["full fine-tuning"]
    assert "88.0 % (352/400)" in full and full.endswith(
        "| +12.5 [+10.9, +14.1], **높음** |  | 1,234 | 9.5 |"
    )
    assert "음**" not in shown["biases only"] and "기준" in shown["linear probe"]
    assert "-12.0 [-14.1, -9.9], **낮음** (full fine-tuning)" in shown["MixUp"]
    assert "같은 겹에서 견줄 수 없음" in shown["CutMix"] and "(211/240)" in shown["CutMix"]
    place = lines.index("구별된 것은 다음과 같습니다.")
    assert lines[place + 2 : place + 5] == [
        "- d, m: full fine-tuning의 정확도에서 linear probe의 정확도를 빼면 +12.5 [+10.9, +14.1], **높음**",
        "- d, m: MixUp의 정확도에서 full fine-tuning의 정확도를 빼면 -12.0 [-14.1, -9.9], **낮음**",
        "",
    ]
    assert "| MixUp | full fine-tuning | 1 | 0 | 1 | 0 | -12.0 |" in lines
    place = lines.index("재지 않은 것은 다음과 같습니다.")
    assert lines[place + 2 : place + 5] == [
        "- d, m: MixUp, CutMix. 겹을 다 채우지 못했습니다.",
        "- d에서 백본까지 학습하는 기법: n.",
        "- vit: 사전 학습한 가중치를 구하지 못했습니다.",
    ]
    assert (
        not [line for line in lines if "GPU에서" in line]
        and "![전이 기법](img/techniques.png)" in lines
    )


def of_a_gpu(made_up):
    """The other machine's: a pair g of its own, of h a technique without its probe, of m MixUp, which the first lacks, and two
    techniques that it has, one with 3 images more."""
    rows = made_up["rows"]
    again = [
        row
        | {"correct": row["correct"] + 3 * (row["technique"] == "biases only" and row["fold"] == 1)}
        for row in rows
        if row["technique"] in ("CutMix", "biases only")
    ]
    mixed = [row for row in rows if row["technique"] == "MixUp"]
    incomplete = [
        {"kind": kind, "dataset": "d", "model": name, "techniques": ["CutMix", "last stage"]}
        for name in ("g", "x")
        for kind in ("tuned", "frozen")
    ]  # of x nothing was measured
    return made_up | {
        "rows": [row | {"model": "g"} for row in rows]
        + [row | {"model": "h"} for row in mixed]
        + mixed
        + again
        + [row | {"model": "frozen here", "kind": "frozen"} for row in rows],
        "processes": 7,
        "processor": "a GPU",
        "versions": {"torch": "9.9"},
        "path": "result/benchmarks/techniques_gpu.csv",
        "alone": [
            {
                "dataset": "d",
                "model": "vit",
                "technique": "full fine-tuning",
                "images": 64,
                "seconds": 21.4,
                "epochs": 10,
                "trainable": 8642,
            }
        ],
        "left_out": {"without_weights": ["vit"], "pairs": [], "incomplete": incomplete},
    }


def test_what_a_gpu_tuned_stands_beside_the_rest(context, monkeypatch, made_up_techniques):
    made_up = made_up_techniques | {
        "rows": [row for row in made_up_techniques["rows"] if row["technique"] != "MixUp"]
    }
    made_up["left_out"] = made_up["left_out"] | {"pairs": [{"dataset": "d", "models": ["g", "n"]}]}
    gpu = of_a_gpu(made_up_techniques)
    readme, lines = render_techniques(
        context, monkeypatch, {"techniques": made_up, "techniques_gpu": gpu}
    )
    assert (
        "백본까지 학습하는 기법(GPU) full fine-tuning 1/0/0, biases only 0/0/1, MixUp 0/0/1."
        in readme
    )
    place = lines.index("재지 않은 것은 다음과 같습니다.")
    assert lines[
        place + 2 : place + 6
    ] == [  # CutMix of g has its rows; nothing of x was measured by any
        "- d, g: last stage. 겹을 다 채우지 못했습니다.",
        "- d에서 백본까지 학습하는 기법: n.",
        "- vit: 사전 학습한 가중치를 구하지 못했습니다.",
        "",
    ]
    place = lines.index("**백본까지 학습하는 기법, GPU에서**")
    assert (
        "a GPU에서 쟀습니다(PyTorch 9.9)" in lines[place + 2]
        and "프로세스 7개가" in lines[place + 2]
    )
    assert (
        "d의 m에서는 두 기계가 함께 잰 기법 2가지의 맞힌 수가 400장 가운데 많아야 3장 다릅니다."
        in lines[place + 2]
    )
    (probe,) = [line for line in lines[place:] if line.startswith("| d | g | linear probe |")]
    assert probe.endswith("| 기준 |  | 1,234 |")  # no seconds: seven shared the GPU
    (alone,) = [
        line for line in lines if line.startswith("- vit: full fine-tuning, d의 학습 이미지 64장")
    ]
    assert "10에포크에 21초" in alone and "8,642개" in alone
    assert [
        line
        for line in lines
        if line.startswith("| d | h | MixUp |") and "같은 겹에서 견줄 수 없음" in line
    ]
    assert (
        "![전이 기법, GPU](img/techniques_gpu.png)" in lines[place:]
        and lines.count("![전이 기법](img/techniques.png)") == 1
    )
    assert not [line for line in lines if "| frozen here |" in line]
    with pytest.raises(SystemExit, match="other data, weights or settings"):
        render_techniques(
            context, monkeypatch, {"techniques": made_up, "techniques_gpu": gpu | {"size": 64}}
        )


def test_what_only_a_gpu_measured_is_shown(context, monkeypatch, made_up_techniques):
    gpu = of_a_gpu(made_up_techniques)
    _, lines = render_techniques(context, monkeypatch, {"techniques_gpu": gpu})
    assert "![전이 기법](img/techniques_gpu.png)" in lines and [
        line for line in lines if line.startswith("| d | frozen here |")
    ]
    assert next(line for line in lines if line.startswith("| d | g | linear probe |")).endswith(
        "| 1,234 |"
    )


def test_architectures_stand_in_a_matrix_of_differences(context, tmp_path, monkeypatch):
    """Three models whose predictions are given: rows less columns, bold where the verdict says so, another sign on the other side."""
    right = {"a": 9, "b": 6, "c": 5}
    predictions = pd.DataFrame(
        [
            {"model": name, "label": 0, "predicted": int(image >= k)}
            for name, k in right.items()
            for image in range(10)
        ]
    )
    scores = {
        "accuracy_low": 0.1,
        "accuracy_high": 0.95,
        "macro_f1": 0.5,
        "log_loss": 1.0,
        "ece": 0.1,
    }
    metrics = pd.DataFrame(
        [
            {"model": name, "accuracy": k / 10, "baseline": "," in name} | scores
            for name, k in [*right.items(), ("a, k-NN", 9)]
        ]
    )
    predictions = pd.concat(
        [predictions, predictions[predictions.model == "a"].assign(model="a, k-NN")]
    )
    pairs = [
        ("a", "b", 0.3, "a better"),
        ("a", "c", 0.4, "a better"),
        ("b", "c", 0.1, "indistinguishable"),
    ]
    pairs = pd.DataFrame(pairs, columns=["model_a", "model_b", "difference", "verdict"])
    source = {"kind": "file", "source": "made up"}
    summary = {
        "data": "d",
        "folds": 5,
        "repeats": 1,
        "n": 10,
        "weights": dict.fromkeys("abc", source),
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    named = {("architectures/d", "summary/compare"): "summary.json"}
    for part, table in (("metrics", metrics), ("pairs", pairs), ("predictions", predictions)):
        table.to_csv(tmp_path / f"{part}.csv", index=False)
        named["architectures/d", f"result/compare_{part}"] = f"{part}.csv"
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    compared = sources.read_comparison(named, "d", "architectures")
    told = context | {
        "architectures": [compared],
        "figures": context["figures"] | {"architectures/d/img/compare": "img/made_up.png"},
    }
    lines = render.render(told)[ROOT / "experiment_report.md"].splitlines()
    first = lines.index("| 행 − 열 | a | b | c |")
    assert lines[first + 1 : first + 6] == [
        "|---|---|---|---|",
        "| a | | **+30.0** | **+40.0** |",
        "| b | **-30.0** | | +10.0 |",
        "| c | **-40.0** | -10.0 | |",
        "",
    ]
    assert any("짝 3개 가운데 2개가 구별됩니다" in line for line in lines)
    assert not any("k-NN" in line for line in lines[first - 7 : first])
    pairs.assign(difference=0.2).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(SystemExit, match="does not follow from their predictions"):
        sources.read_comparison(named, "d", "architectures")


def test_confusions_as_frequent_as_the_third_are_told():
    labels, predictions = [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 1], [1, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    found = sources.describe_errors(
        {"val_labels": labels, "val_predictions": predictions, "classes": ["a", "b", "c"]}
    )
    assert found["pairs"] == [("a", "b", 3), ("a", "c", 2), ("b", "a", 2), ("c", "b", 2)]
    assert not sources.describe_errors(
        {"val_labels": [0, 1], "val_predictions": [0, 1], "classes": ["a", "b"]}
    )["pairs"]
