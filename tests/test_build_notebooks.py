"""The notebook build, on a small tree of its own.

A fake package, one source, and outputs as papermill leaves them.
"""

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

TOOL = Path(__file__).resolve().parents[1] / "tools" / "build_notebooks.py"
spec = importlib.util.spec_from_file_location("build_notebooks", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

ERRORS = '''"""Errors."""


class UserError(Exception):
    """What a user can mend."""
'''

DATA = '''"""Data."""

import functools
import math
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np

from .errors import UserError

SPLITS = ("train", "val")
RED, BLUE = "#f00", "#00f"


# Sizes are checked first:
# an empty folder is the commonest mistake.
@functools.cache
def find_images(folder, split=SPLITS[0]):
    """Lists the images.

    Raises UserError: there is none.
    """
    files = sorted(Path(folder, split).iterdir())
    if not files:
        raise UserError("no images")
    return files


def mean_image(images):
    import time  # a lazy import stays where it is

    functools = time.time()
    return np.mean(images), functools


def unused():
    return math.pi, Counter(), OrderedDict()
'''

TRAIN = '''"""Training."""

from collections import Counter, defaultdict

from .data import find_images
from .errors import UserError


class EarlyStopping:
    patience = 5


def train(folder, stopping=EarlyStopping):
    """Trains."""
    return defaultdict(int, Counter(find_images(folder))), stopping


def train_lazily(folder):
    from .data import mean_image

    return mean_image(folder)
'''

NOUNS = '''"""Nouns."""

import enum
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import (
    Any,
    Generic,
    Literal,
    TypeAlias,
    TypeVar,
)

from .data import (
    BLUE,
    find_images,  # only named in a default
)

Item = TypeVar("Item")
Views: TypeAlias = "list[int]"
Draw = Callable[[int], Any]


class Rule(enum.Enum):
    CYCLE = "cycle"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train."""

    epochs: int = 30
    rule: Rule = Rule.CYCLE


@dataclass(frozen=True, kw_only=True)
class Study(Generic[Item]):
    settings: Settings = field(default_factory=lambda: Settings(epochs=3))
    draw: Draw | None = None
    views: tuple[Views, ...] = ()
    part: Literal["train", "val"] = "train"  # a value, not what the library calls `train`
    find: Callable = find_images

    @functools.cached_property
    def share(self) -> "Fraction":
        return type(self).from_epochs(self.settings.epochs)

    @staticmethod
    def from_epochs(epochs: int) -> "Fraction | None":
        return None if epochs < 0 else epochs

    def on(self, fold: "Fold") -> Iterator["Study"]:
        yield Study(settings=Settings(epochs=fold.number))


@dataclass(frozen=True)
class Fold:
    number: int = 0


def describe(study: Study, *, color: str = BLUE, **rest: Item) -> dict[str, Settings]:
    settings: Settings = study.settings
    return {color: settings, **rest}
'''

NOUNS_LINES = """# @inline transferlab.data: SPLITS, BLUE, find_images
# @inline transferlab.nouns: Item, Views, Draw, Rule, Settings
# @inline transferlab.nouns: Study, Fold, describe
"""

SOURCE = """# %% [markdown] id="title"
# # 제목

# %% id="imports"
# What the cells below use.
import sys
import os.path

# %% tags=["parameters"] id="parameters"
data_dir = ""

# %% [markdown] id="setup"
# ## 준비
# 접어 둔 칸들

# %% id="data"
# @inline transferlab.errors: UserError
# @inline transferlab.data: SPLITS, find_images

# %% [markdown] id="learn"
# ## 학습

# %% id="train"
# @inline transferlab.train: EarlyStopping, train

# %% id="show" tags=["shows-images"]
# copy is no shell command here
print(os.path.join(data_dir, "a"), sys.platform)

# %% id="result"
train(data_dir)
"""


@pytest.fixture
def root(tmp_path):
    for name, text in {"__init__": "", "errors": ERRORS, "data": DATA, "train": TRAIN}.items():
        write(tmp_path / "transferlab" / f"{name}.py", text)
    write(tmp_path / "notebooks" / "01_study.py", SOURCE)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def nouns(root):
    """The tree with a module of types, all of it inlined."""
    write(root / "transferlab/nouns.py", NOUNS)
    edit(
        root / "notebooks/01_study.py",
        "# @inline transferlab.data: SPLITS, find_images\n",
        NOUNS_LINES,
    )
    return root


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    write(path, text.replace(old, new))


def run(root, *options, limits=tool.LIMITS):
    return tool.main(["--root", str(root), *options], limits=limits)


def built(root):
    assert run(root) == 0
    return nbformat.read(root / "01_study.ipynb", as_version=4)


def cells_of(notebook):
    return {cell.id: cell for cell in notebook.cells}


def execute(notebook, **outputs):
    """A copy as papermill leaves it: parameters injected, every cell counted, a line from each."""
    executed = copy.deepcopy(notebook)
    parameters = next(i for i, cell in enumerate(executed.cells) if tool.tagged(cell, "parameters"))
    injected = new_code_cell('data_dir = "elsewhere"', metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(parameters + 1, injected)
    for count, cell in enumerate(tool.code_cells(executed.cells), 1):
        cell.execution_count = count
        cell.outputs = outputs.get(cell.id, [stream(f"{cell.id}\n")])
    return executed


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def store(root, **outputs):
    """Builds, "executes" and stores; returns the notebook that lies on disk then."""
    notebook = built(root)
    stored = tool.store_outputs(notebook, execute(notebook, **outputs))
    write(root / "01_study.ipynb", tool.write_text(stored))
    return stored


def kept(root):
    return [cell.id for cell in tool.code_cells(built(root).cells) if cell.outputs]


def assert_refused(root, capsys, *parts, limits=tool.LIMITS):
    assert run(root, limits=limits) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in parts:
        assert part in message


def is_clean_for_ruff(root):
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select=F821,F811,I",
        "01_study.ipynb",
    ]
    return subprocess.run(command, cwd=root, capture_output=True).returncode == 0


# What is built.


def test_inlined_source_is_exact(root):
    notebook = cells_of(built(root))
    start, end = DATA.index("# Sizes are"), DATA.index("\n\n\ndef mean_image")
    expected = [ERRORS.split("\n\n\n")[1].strip(), 'SPLITS = ("train", "val")', DATA[start:end]]
    assert notebook["data"].source == "\n\n\n".join(expected)


def test_imports_are_those_that_inlined_code_uses_merged_and_sorted(root):
    assert cells_of(built(root))["imports"].source == (
        "# What the cells below use.\n"
        "import functools\nimport os.path\nimport sys\n"
        "from collections import Counter, defaultdict\nfrom pathlib import Path"
    )


def test_third_party_imports_follow_and_local_names_bring_none(root):
    edit(root / "notebooks/01_study.py", "SPLITS, find_images", "SPLITS, find_images, mean_image")
    edit(root / "transferlab/data.py", "@functools.cache\n", "")
    source = cells_of(built(root))["imports"].source
    assert source.endswith("\nfrom pathlib import Path\n\nimport numpy as np")
    assert "functools" not in source and "import time" not in source


def test_long_imports_are_wrapped_and_future_comes_first(root):
    names = [f"a_rather_long_name_{i}" for i in range(8)]
    head = f"from __future__ import annotations\n\nfrom somewhere import {', '.join(names)}\n"
    edit(root / "transferlab/errors.py", '"""Errors."""\n', f'"""Errors."""\n{head}')
    edit(
        root / "transferlab/errors.py",
        '    """What a user can mend."""',
        f"    everything = ({', '.join(names)})",
    )
    lines = cells_of(built(root))["imports"].source.split("\n")
    assert lines[:2] == ["# What the cells below use.", "from __future__ import annotations"]
    assert "from somewhere import (" in lines and max(map(len, lines)) <= 120


def test_one_statement_may_define_several_names(root):
    edit(root / "notebooks/01_study.py", "data: SPLITS", "data: BLUE, RED, SPLITS")
    assert cells_of(built(root))["data"].source.count('RED, BLUE = "#f00", "#00f"') == 1


def test_notebook_is_valid_folded_and_clean_for_ruff(root):
    notebook = built(root)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.display_name == "Python 3"
    assert notebook.metadata.language_info == {"name": "python"}
    assert notebook.metadata.colab.collapsed_sections == ["setup"]
    assert cells_of(notebook)["setup"].metadata == {
        "id": "setup",
        "jp-MarkdownHeadingCollapsed": True,
    }
    assert cells_of(notebook)["show"].metadata == {"tags": ["shows-images"]}
    assert cells_of(notebook)["show"].source.startswith("# copy is")
    assert is_clean_for_ruff(root)


def test_types_run_as_a_notebook(nouns, capsys):
    edit(
        nouns / "notebooks/01_study.py",
        "train(data_dir)",
        "study, = Study().on(Fold(number=7))\nprint(describe(study), study.share)",
    )
    notebook = built(nouns)
    assert is_clean_for_ruff(nouns)
    capsys.readouterr()
    names = {"__name__": "__main__"}
    for cell in tool.code_cells(notebook.cells):
        exec(cell.source, names)
    settings = "Settings(epochs=7, rule=<Rule.CYCLE: 'cycle'>)"
    assert capsys.readouterr().out.split("\n")[1] == f"{{'#00f': {settings}}} 7"


def test_what_only_annotations_name_joins_the_imports(nouns):
    lines = cells_of(built(nouns))["imports"].source.split("\n")
    assert "from collections.abc import Callable, Iterator" in lines
    assert "from fractions import Fraction" in lines  # named in quotes alone
    assert "from typing import Any, Generic, Literal, TypeAlias, TypeVar" in lines
    assert "from dataclasses import dataclass, field" in lines and "import functools" in lines


def test_sub_packages_are_not_read(root):
    write(root / "transferlab/audit/__init__.py", "from .. import data\nprint(1)\n")
    write(root / "transferlab/audit/pairs.py", "import transferlab\n\n\nclass UserError(:\n")
    write(root / "transferlab/commands/train.py", "def train():\n    pass\n")
    assert run(root) == 0


# What is refused.


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('# %% id="result"\n', "# %%\n", ["cell 9 ('train(data_dir)')", "has no id"]),
        ('id="result"', 'id="train"', ["cell 9", "'train' of an earlier cell"]),
        ('id="result"', 'id="the result"', ["cell 9", "invalid id"]),
        ('id="result"', 'id="result" tag=["x"]', ["cell 9", "metadata tag"]),
        ("train(data_dir)", "!ls", ["cell 'result', line 1", "not plain Python"]),
        ("train(data_dir)", "import transferlab.train", ["'result' imports transferlab"]),
        ("train(data_dir)", "from transferlab import train", ["'result' imports transferlab"]),
        (
            "train(data_dir)",
            "# @inline transferlab.model: x",
            ["'result'", "there is no transferlab.model"],
        ),
        (
            "train(data_dir)",
            "# @inline transferlab.train: x",
            ["'result'", "there is no 'x' in transferlab.train"],
        ),
        ("train(data_dir)", "# @inline transferlab.train x", ["'result'", "holds only"]),
        ("train(data_dir)", "# @inline transferlab.train: train", ["train is inlined twice"]),
        (
            "SPLITS, find_images\n",
            "SPLITS, find_images\nx = 1\n",
            ["'data'", "holds only", "`x = 1`"],
        ),
        ("train(data_dir)", "# @inline transferlab.audit.pairs: x", ["'result'", "holds only"]),
        ("train: EarlyStopping, train", "train: train_lazily", ["relative import in its body"]),
        (
            "# @inline transferlab.errors: UserError\n",
            "",
            ["find_images needs UserError: add `# @inline transferlab."],
        ),
        ("SPLITS, find_images", "find_images, SPLITS", ["find_images needs SPLITS", "before it"]),
        (
            "train: EarlyStopping, train",
            "train: train, EarlyStopping",
            ["train needs EarlyStopping", "before it"],
        ),
        ("import sys\n", "import sys as Counter\n", ["'imports'", "Counter would be both"]),
        ("import sys\n", "from x import train\n", ["'imports'", "train would be both"]),
        (
            "import sys\n",
            "import sys\nprint(1)\n",
            ["'imports'", "only absolute imports, not `print(1)`"],
        ),
        ('id="imports"', 'id="import"', ["the first code cell"]),
        ('tags=["parameters"] ', "", ['tags=["parameters"]']),
    ],
)
def test_bad_source_is_one_clear_line(root, capsys, old, new, parts):
    edit(root / "notebooks/01_study.py", old, new)
    assert_refused(root, capsys, "notebooks/01_study.py", *parts)
    assert not (root / "01_study.ipynb").exists()


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "from .data import find_images",
            "from .data import find_images as find",
            ["find_images as find"],
        ),
        ("from .data import find_images", "from . import data", ["`from . import data`"]),
        ("from .data import find_images", "import transferlab.data", ["`import transferlab.data`"]),
        (
            "from .data import find_images",
            "from transferlab.data import find_images",
            ["transferlab/train.py:5"],
        ),
        (
            "from .data import find_images",
            "from .audit import find_images",
            ["transferlab/train.py:5: `from .audit import find_images`", "flat module"],
        ),
        (
            "from .data import find_images",
            "from .audit.pairs import find_images",
            ["transferlab/train.py:5", "flat module"],
        ),
        (
            "    from .data import mean_image",
            "    from .commands import mean_image",
            ["transferlab/train.py:19", "flat module"],
        ),
        (
            "class EarlyStopping",
            "class UserError",
            ["UserError is", "top-level name of transferlab.errors"],
        ),
        ("class EarlyStopping", "train = 1\n\n\nclass EarlyStopping", ["train is defined twice"]),
        (
            "class EarlyStopping",
            "print(1)\n\n\nclass EarlyStopping",
            ["transferlab/train.py:9", "at the top level"],
        ),
        (
            "class EarlyStopping",
            "class Early Stopping",
            ["transferlab/train.py, line 9", "not plain Python"],
        ),
    ],
)
def test_bad_library_is_one_clear_line(root, capsys, old, new, parts):
    write(root / "transferlab/audit/pairs.py", "")
    write(root / "transferlab/commands/__init__.py", "")
    edit(root / "transferlab/train.py", old, new)
    assert_refused(root, capsys, *parts)


def needs_of(folder, name, text):
    """What a definition of the module of types needs, and what of it before itself."""
    write(folder / "nouns.py", text)
    one = tool.read_library(folder)["nouns"][name]
    return set(one.needs), one.needs_first.intersection(one.needs)


@pytest.mark.parametrize(
    ("name", "needs", "first"),
    [
        ("Item", set(), set()),
        ("Settings", {"Rule"}, {"Rule"}),
        (
            "Study",
            {"Settings", "Draw", "Views", "Item", "Fold", "find_images"},
            {"Settings", "Draw", "Views", "Item", "find_images"},
        ),
        ("describe", {"Study", "Settings", "Item", "BLUE"}, {"Study", "Settings", "Item", "BLUE"}),
    ],
)
def test_needs_of_types_are_those_of_their_annotations(root, name, needs, first):
    assert needs_of(root / "transferlab", name, NOUNS) == (needs, first)


@pytest.mark.parametrize(
    ("definition", "needs", "first"),
    [
        ("def f(a, /, b: A, *c: B, d: C = None, **e: D) -> E: pass", "ABCDE", "ABCDE"),
        ("def f(a=A, *, b=B(), c=lambda: C): pass", "ABC", "AB"),
        ("def f():\n    a: A = None\n    def g(b: B): pass", "AB", ""),
        ("async def f(a: A): return B", "AB", "A"),
        ("@A(b=B)\nclass f(C, metaclass=D): pass", "ABCD", "ABCD"),
        (
            "class f:\n    a: A\n    b: list[B] = C\n    def g(self, d: D) -> E: F",
            "ABCDEF",
            "ABCDE",
        ),
        ("class f:\n    a: A\n    class G:\n        b: dict[str, B | None]", "AB", "AB"),
        ("f: A = [B for _ in C]", "ABC", "ABC"),
        ("f = TypeVar('f', bound=A)", "A", "A"),
        ("class f:\n    a: 'A | None'\n    def g(self, b: list['B']) -> 'C[D]': pass", "ABCD", ""),
        ("def f(a: Literal['A'], b: Annotated[B, 'N, A of']) -> 'not a type': pass", "B", "B"),
        ("def f():\n    a: 'A'\n    return 'B'", "A", ""),
    ],
)
def test_needs_are_what_is_looked_up_and_first_what_is_at_definition(
    tmp_path, definition, needs, first
):
    text = "".join(f"{name} = 1\n" for name in "ABCDEF") + definition
    assert needs_of(tmp_path, "f", text) == (set(needs), set(first))


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("Rule, Settings", "Rule", ["Study needs Settings: add `# @inline transferlab.nouns:"]),
        ("Study, Fold", "Study", ["Study needs Fold: add"]),
        ("Item, Views", "Views", ["Study needs Item: add"]),
        ("BLUE, ", "", ["describe needs BLUE: add `# @inline transferlab.data: BLUE`"]),
    ],
)
def test_what_only_an_annotation_or_a_default_names_must_be_inlined(nouns, capsys, old, new, parts):
    edit(nouns / "notebooks/01_study.py", old, new)
    assert_refused(nouns, capsys, *parts)


def test_fields_and_defaults_must_come_after_what_they_name(nouns, capsys):
    edit(nouns / "notebooks/01_study.py", "Rule, Settings", "Settings, Rule")
    assert_refused(nouns, capsys, "Settings needs Rule", "before it")


def test_annotations_count_as_needed_first_unless_the_module_defers_them(root, capsys):
    edit(root / "transferlab/train.py", "stopping=EarlyStopping", "stopping: EarlyStopping")
    edit(
        root / "notebooks/01_study.py", "train: EarlyStopping, train", "train: train, EarlyStopping"
    )
    assert_refused(root, capsys, "train needs EarlyStopping", "before it")
    edit(root / "transferlab/train.py", '"""Training."""', "from __future__ import annotations")
    assert run(root) == 0


# Limits.

LIMITS = tool.Limits(inlined=830, outside=300, cell=40)


def with_long_cells(root, outside, setup):
    """Adds inlined cells of 40 lines: `outside` in the open, `setup` in the folded section."""
    functions = [f"def f{i}():\n" + "    x = 1\n" * 39 for i in range(outside + setup)]
    write(root / "transferlab/many.py", "\n\n".join(functions))
    cells = [
        f'# %% id="many{i}"\n# @inline transferlab.many: f{i}\n\n' for i in range(outside + setup)
    ]
    next_section = '# %% [markdown] id="learn"\n'
    source = SOURCE.replace(next_section, "".join(cells[outside:]) + next_section)
    write(root / "notebooks/01_study.py", source + "\n" + "".join(cells[:outside]))


def test_limits(root, capsys):
    with_long_cells(root, outside=7, setup=7)
    assert run(root, limits=LIMITS) == 0
    with_long_cells(root, outside=8, setup=0)
    outside = '324 inlined lines of code outside "## 준비", at most 300'
    assert_refused(root, capsys, outside, "many0 40", limits=LIMITS)
    with_long_cells(root, outside=7, setup=14)
    assert_refused(root, capsys, "inlined lines of code, at most 830", limits=LIMITS)
    assert run(root, "--count") == 0
    assert " 852    284 " in capsys.readouterr().out


def test_limit_of_one_cell_counts_code_only(root, capsys):
    body = '    """Says\n\n    something."""\n' + "    # why\n\n    x = 1\n" * 39
    write(root / "transferlab/long.py", f"def long():\n{body}")
    write(
        root / "notebooks/01_study.py",
        SOURCE + '\n# %% id="long"\n# @inline transferlab.long: long\n',
    )
    assert run(root, limits=LIMITS) == 0
    write(root / "transferlab/long.py", f"def long():\n{body}    return x\n")
    assert_refused(root, capsys, "cell 'long' has 41 lines of code, at most 40", limits=LIMITS)


def test_deeper_headings_and_code_fences_do_not_end_the_setup_section():
    texts = ["## 준비", "### 자료", "```\n# 주석\n```", "## 학습"]
    cells = [nbformat.v4.new_markdown_cell(text, id=f"c{i}") for i, text in enumerate(texts)]
    assert tool.setup_ids(cells) == {"c0", "c1", "c2"}


# Stale or not.


def test_build_is_reproducible_byte_for_byte(root, capsys):
    first = tool.write_text(built(root))
    assert run(root, "--check") == 0
    assert (
        tool.write_text(built(root)) == first
        and first.endswith("}\n")
        and not first.endswith("\n\n")
    )
    store(root)
    with_outputs = (root / "01_study.ipynb").read_bytes()
    assert run(root, "--check", "--check-outputs") == 0
    capsys.readouterr()
    assert run(root) == 0
    assert capsys.readouterr().out == "01_study.ipynb: 9 cells, 6 outputs kept, 0 dropped\n"
    assert (root / "01_study.ipynb").read_bytes() == with_outputs


def test_check_names_the_first_stale_cell_and_writes_nothing(root, capsys):
    assert run(root, "--check") == 1
    assert "01_study.ipynb is missing" in capsys.readouterr().out
    store(root)
    before = (root / "01_study.ipynb").read_bytes()
    capsys.readouterr()
    edit(root / "transferlab/data.py", "no images", "no images here")
    assert run(root, "--check") == 1
    assert (
        capsys.readouterr().out
        == "01_study.ipynb is stale from cell 'data' on: run `make notebooks`\n"
    )
    assert (root / "01_study.ipynb").read_bytes() == before


def test_check_sees_formatting_and_cells_at_the_end(root, capsys):
    store(root)
    target = root / "01_study.ipynb"
    write(target, target.read_text(encoding="utf-8") + "\n")
    assert run(root, "--check") == 1
    assert "metadata or formatting" in capsys.readouterr().out
    write(root / "notebooks/01_study.py", SOURCE + '\n# %% [markdown] id="end"\n# 끝\n')
    assert run(root, "--check") == 1
    assert "from cell 'end' on" in capsys.readouterr().out


def test_unreadable_notebook_is_one_clear_line(root, capsys):
    write(root / "01_study.ipynb", "<<<<<<< ours\n")
    assert_refused(root, capsys, "01_study.ipynb cannot be read")


# Outputs.


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("transferlab/train.py", '"""Trains."""', '"""Trains\n\n    a head."""'),
        ("transferlab/data.py", "# an empty folder", "# a folder without files"),
        ("notebooks/01_study.py", "# 접어 둔 칸들", "# 접힌 칸들"),
        ("notebooks/01_study.py", 'id="result"', 'id="results"'),
        ("notebooks/01_study.py", "train(data_dir)", "# again\ntrain( data_dir )"),
    ],
)
def test_edits_of_text_keep_outputs(root, path, old, new):
    store(root)
    edit(root / path, old, new)
    assert len(kept(root)) == 5  # all but the cell that shows images
    assert run(root, "--check", "--check-outputs") == 0


def test_edits_of_code_drop_outputs_from_there_on(root, capsys):
    store(root)
    edit(root / "transferlab/train.py", "patience = 5", "patience = 6")
    assert kept(root) == ["imports", "parameters", "data"]
    dropped = cells_of(built(root))["result"]
    assert dropped.execution_count is None and dropped.metadata == {}
    capsys.readouterr()
    assert run(root, "--check-outputs") == 1
    assert (
        capsys.readouterr().out == "01_study.ipynb has no stored outputs for train, show, result\n"
    )


def test_a_cell_tagged_later_as_showing_images_drops_its_output(root):
    store(root)
    edit(root / "notebooks/01_study.py", 'id="result"', 'id="result" tags=["shows-images"]')
    assert kept(root) == ["imports", "parameters", "data", "train"]


def test_store_outputs_joins_streams_and_leaves_the_last_state_of_bars(root):
    states = ["\r  0%|   | 0/2", "\r 50%|# | 1/2", "\r100%|##| 2/2\n"]
    bar = [stream(state, "stderr") for state in states]
    wiped = [stream("begun\n"), stream("\r 50%"), stream("\r     \r")]
    value = [new_output("execute_result", {"text/plain": "3"}, execution_count=7)]
    notebook = cells_of(
        store(root, data=bar, train=wiped, parameters=[stream("\r \r")], result=value)
    )
    assert notebook["data"].outputs == [stream("100%|##| 2/2\n", "stderr")]
    assert notebook["train"].outputs == [stream("begun\n")]
    assert notebook["parameters"].outputs == []
    assert [
        notebook[name].execution_count for name in ("imports", "parameters", "data", "result")
    ] == [1, 2, 3, 6]
    assert notebook["result"].outputs[0].execution_count == 6


def test_store_outputs_changes_nothing_that_it_is_given(root):
    notebook = built(root)
    executed = execute(notebook, data=[stream("a"), stream("b")])
    before = copy.deepcopy((notebook, executed))
    tool.store_outputs(notebook, executed, executed)
    assert (notebook, executed) == before


def test_cells_that_show_images_hold_drawn_pictures_or_nothing(root):
    notebook = built(root)
    executed, pictures = execute(notebook), execute(notebook, show=[stream("drawn\n")])
    for given_pictures, expected in [
        (None, []),
        (pictures, [stream("drawn\n")]),
        (new_notebook(), []),
    ]:
        stored = tool.store_outputs(notebook, executed, given_pictures)
        assert cells_of(stored)["show"].outputs == expected
        assert cells_of(stored)["result"].outputs == [stream("result\n")]
        write(root / "01_study.ipynb", tool.write_text(stored))
        assert run(root, "--check", "--check-outputs") == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            new_output("error", ename="UserError", evalue="no images"),
            "'result' failed: UserError: no images",
        ),
        (
            new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
            "'result' shows a widget",
        ),
    ],
)
def test_store_outputs_refuses_errors_and_widgets(root, output, message):
    with pytest.raises(tool.BuildError, match=message):
        store(root, result=[output])


def test_store_outputs_refuses_widget_state_and_other_code(root):
    notebook = built(root)
    executed = execute(notebook)
    executed.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {}}
    with pytest.raises(tool.BuildError, match="holds widgets"):
        tool.store_outputs(notebook, executed)
    executed = execute(notebook)
    cells_of(executed)["train"].source += "\nx = 1"
    with pytest.raises(tool.BuildError, match="'train' is not what the executed copy ran"):
        tool.store_outputs(notebook, executed)


# The hash.

characters = st.characters(codec="utf-8", exclude_characters='\\"', exclude_categories=["Cc", "Cs"])
words = st.text(characters, max_size=30)


@given(docstring=words, comment=words, blank=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_hash_ignores_docstrings_comments_and_space(docstring, comment, blank):
    bare = new_code_cell("class A:\n    def f(self):\n        return 1")
    head = f'class A:\n    """{docstring} """\n    # {comment}\n' + "\n" * blank
    text = head + "    def f( self ):\n        return (1)  # x"
    assert tool.code_hashes([bare]) == tool.code_hashes([new_code_cell(text)])
    assert tool.code_lines(text) == 3


@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=6), data=st.data())
@settings(max_examples=50, deadline=None)
def test_hash_changes_with_the_first_changed_cell_and_ever_after(values, data):
    changed = data.draw(st.integers(0, len(values) - 1))
    cells = [new_code_cell(f"x = {value}") for value in values]
    others = [new_code_cell(f"x = {value + 10 * (i == changed)}") for i, value in enumerate(values)]
    before, after = tool.code_hashes(cells), tool.code_hashes(others)
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert same == [i < changed for i in range(len(values))]
    assert len(set(before)) == len(values)


def test_hash_is_pinned():
    """A version of Python, or an edit, that changes this hash would drop every stored output."""
    cell = new_code_cell("def f(x, *, y=None):\n    return f'{x!r:>{y}} {{}}' if x else [*x, ...]")
    assert tool.code_hashes([cell]) == [
        "faaa1b44095b4932c9d3da1056922f98b18b86f98f970aa23cd74779a6e063f4"
    ]


def test_a_string_that_a_cell_shows_is_no_docstring():
    assert tool.code_hashes([new_code_cell('"a"')]) != tool.code_hashes([new_code_cell('"b"')])
    assert tool.code_lines('"a"') == 1
