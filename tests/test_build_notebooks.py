"""The notebook build, on a small tree of its own.

A fake package, one source, and outputs as papermill leaves them.
"""

import ast
import copy
import dataclasses
import importlib.util
import re
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from hypothesis import assume, given, settings
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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import UserError

SPLITS = ("train", "val")
RED, BLUE = "#f00", "#00f"


# Sizes are checked first:
# an empty folder is the commonest mistake.
@functools.cache
def find_images(folder: Path, split: str = SPLITS[0]) -> list[Path]:
    """Lists the images.

    Raises UserError: there is none.
    """
    files = sorted(Path(folder, split).iterdir())
    if not files:
        raise UserError("no images")
    return files


def mean_image(images: Sequence[np.ndarray]):
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
from decimal import Decimal
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
    fold: "Fold | None" = None
    least: "Fraction | None" = None

    @functools.cached_property
    def share(self) -> "Decimal":
        return type(self).from_epochs(self.settings.epochs)

    @staticmethod
    def from_epochs(epochs: int) -> Decimal | None:
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
#
# {{ colab_badge }}
#
# 소개

# %% tags=["parameters"] id="parameters"
# @title 설정
data_dir = ""  # @param {type:"string"}

# %% id="setup"
# @title 준비 코드
import sys
# joins what a user types
import os.path

import matplotlib.pyplot as plt

# @inline transferlab.errors: UserError
separator = os.sep
# @inline transferlab.data: SPLITS, find_images

# %% [markdown] id="learn"
# ## 학습

# %% id="train"
# @inline transferlab.train: EarlyStopping, train
stopping = EarlyStopping

# %% id="show" tags=["shows-images"]
# copy is no shell command here
print(os.path.join(data_dir, "a"), sys.platform)
plt.show()

# %% id="result"
train(data_dir)
"""

SETUP = '''# @title 준비 코드
import functools

# joins what a user types
import os.path
import sys
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

class UserError(Exception):
    """What a user can mend."""

separator = os.sep

SPLITS = ("train", "val")

# Sizes are checked first:
# an empty folder is the commonest mistake.
@functools.cache
def find_images(folder, split=SPLITS[0]):
    files = sorted(Path(folder, split).iterdir())
    if not files:
        raise UserError("no images")
    return files'''

TRAIN_CELL = '''class EarlyStopping:
    patience = 5

def train(folder, stopping=EarlyStopping):
    """Trains."""
    return defaultdict(int, Counter(find_images(folder))), stopping

stopping = EarlyStopping'''


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
    """Tells whether all names are known, once, and all imports sorted."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select=F821,F811,I",
        "--config=lint.isort.lines-after-imports=1",
        "--config=lint.isort.combine-as-imports=true",
        "01_study.ipynb",
    ]
    return subprocess.run(command, cwd=root, capture_output=True).returncode == 0


# What is built.


def test_setup_holds_its_title_all_imports_and_its_parts_in_order(root):
    """`train` of another cell brings Counter and defaultdict."""
    assert cells_of(built(root))["setup"].source == SETUP


def test_inline_lines_and_own_code_mix_in_any_cell(root):
    assert cells_of(built(root))["train"].source == TRAIN_CELL


def test_a_comment_right_above_an_inline_line_stays_right_above_the_definition(root):
    lines = "x = 1\n# 출처: 교과서\n# @inline transferlab.data: RED\n\n# 끝\n\n"
    lines += "# @inline transferlab.data: unused"
    edit(root / "notebooks/01_study.py", "train(data_dir)", lines)
    source = cells_of(built(root))["result"].source
    head = 'x = 1\n# 출처: 교과서\nRED, BLUE = "#f00", "#00f"\n\n# 끝\n\ndef unused():\n'
    assert source.startswith(head)


def test_own_imports_come_first_wherever_they_stand_in_setup(root):
    edit(
        root / "notebooks/01_study.py",
        "separator = os.sep",
        "separator = os.sep\nimport abc  # why\nif separator:\n    import enum",
    )
    lines = cells_of(built(root))["setup"].source.split("\n")
    assert lines[:2] == ["# @title 준비 코드", "import abc  # why"]
    assert lines.count("import abc  # why") == 1
    own = lines.index("separator = os.sep")
    assert lines[own + 1 : own + 4] == ["if separator:", "    import enum", ""]


def test_setup_may_do_without_code_of_its_own(root):
    start = SOURCE.index("import sys\n")
    end = SOURCE.index('# %% [markdown] id="learn"')
    source = SOURCE[:start] + "# @inline transferlab.data: RED\n\n" + SOURCE[end:]
    inline = "# @inline transferlab.train: EarlyStopping, train\nstopping = EarlyStopping\n"
    write(root / "notebooks/01_study.py", source.replace(inline, ""))
    assert cells_of(built(root))["setup"].source == '# @title 준비 코드\nRED, BLUE = "#f00", "#00f"'


def test_third_party_imports_follow_and_local_names_bring_none(root):
    edit(root / "notebooks/01_study.py", "SPLITS, find_images", "SPLITS, find_images, mean_image")
    edit(root / "transferlab/data.py", "@functools.cache\n", "")
    head, _, rest = cells_of(built(root))["setup"].source.partition("\n\nclass ")
    assert head.endswith(
        "from pathlib import Path\n\nimport matplotlib.pyplot as plt\nimport numpy as np"
    )
    assert "functools" not in head and "import time" not in head and "Sequence" not in head
    assert "    import time  # a lazy import stays where it is\n" in rest


def test_long_imports_are_wrapped_and_future_comes_first(root):
    names = [f"a_rather_long_name_{i}" for i in range(8)]
    head = f"from __future__ import annotations\n\nfrom somewhere import {', '.join(names)}\n"
    edit(root / "transferlab/errors.py", '"""Errors."""\n', f'"""Errors."""\n{head}')
    edit(
        root / "transferlab/errors.py",
        '    """What a user can mend."""',
        f"    everything = ({', '.join(names)})",
    )
    lines = cells_of(built(root))["setup"].source.partition("\n\nclass ")[0].split("\n")
    assert lines[:2] == ["# @title 준비 코드", "from __future__ import annotations"]
    assert "from somewhere import (" in lines and max(map(len, lines)) <= 100


def test_one_statement_may_define_several_names(root):
    edit(root / "notebooks/01_study.py", "data: SPLITS", "data: BLUE, RED, SPLITS")
    assert cells_of(built(root))["setup"].source.count('RED, BLUE = "#f00", "#00f"') == 1


def test_notebook_is_valid_folded_and_clean_for_ruff(root):
    notebook = built(root)
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "accelerator": "GPU",
        "colab": {"gpuType": "T4", "provenance": []},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    metadata = {name: cell.metadata for name, cell in cells_of(notebook).items() if cell.metadata}
    assert metadata == {
        "parameters": {"tags": ["parameters"]},
        "setup": {"cellView": "form", "jupyter": {"source_hidden": True}},
        "show": {"tags": ["shows-images"]},
    }
    assert cells_of(notebook)["show"].source.startswith("# copy is")
    assert is_clean_for_ruff(root)


def test_a_badge_leads_to_the_notebook_of_the_repository_that_is_set(root):
    write(root / "pyproject.toml", '[tool.transferlab]\nrepository = "some-one/a.lab"\n')
    address = "https://colab.research.google.com/github/some-one/a.lab/blob/main/01_study.ipynb"
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    badge = f"[![Open In Colab]({picture})]({address})"
    assert cells_of(built(root))["title"].source == f"# 제목\n\n{badge}\n\n소개"


@pytest.mark.parametrize("text", [None, "", '[tool.transferlab]\nrepository = ""\n'])
def test_without_a_repository_there_is_no_badge_and_no_gap(root, text):
    if text is not None:
        write(root / "pyproject.toml", text)
    assert cells_of(built(root))["title"].source == "# 제목\n\n소개"
    edit(root / "notebooks/01_study.py", "# {{ colab_badge }}\n#\n# 소개", "# {{ colab_badge }}")
    assert cells_of(built(root))["title"].source == "# 제목"


def test_a_repository_is_owner_and_name(root, capsys):
    write(root / "pyproject.toml", '[tool.transferlab]\nrepository = "https://github.com/a/b"\n')
    assert_refused(root, capsys, "pyproject.toml", "OWNER/REPO", "github.com/a/b")


# What a notebook shows of a definition.


def formatted(text, **options):
    return tool.run_ruff(tool.FORMAT, tool.lean(text, **options), "here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(a: A, /, b: B, *c: C, d: D, **e: E) -> F: ...", "def f(a, /, b, *c, d, **e): ..."),
        ("def f(a: A = 1, /, *, b: B = 2, c) -> 'C': ...", "def f(a=1, /, *, b=2, c): ..."),
        ("def f(*a: *A, b: lambda: 1 = 2): ...", "def f(*a, b=2): ..."),
        ("async def f(a: A) -> B: ...", "async def f(a): ..."),
        ("def f():\n    x: int = 3", "def f():\n    x = 3"),
        ("def f():\n    x: int = 3; y: A = x; z = y", "def f():\n    x = 3\n    y = x\n    z = y"),
        ("def f():\n    self.x: A = yield", "def f():\n    self.x = yield"),
        ("def f():\n    x: A = 1, *y", "def f():\n    x = 1, *y"),
        (
            "def f():\n    for _ in x:\n        with y:\n            z: A = 1",
            "def f():\n    for _ in x:\n        with y:\n            z = 1",
        ),
        (
            "def f(a: A):\n    async def g(b: B) -> C:\n        x: int = 3\n\n    y: int = 4",
            "def f(a):\n    async def g(b):\n        x = 3\n\n    y = 4",
        ),
        (
            "class A:\n    x: int = 3\n\n    def f(self, a: A) -> B:\n        y: int = 4\n\n"
            "    z: int = 5",
            "class A:\n    x: int = 3\n\n    def f(self, a):\n        y = 4\n\n    z: int = 5",
        ),
        (
            "def f():\n    class A:\n        x: int = 3\n\n    y: int = 4",
            "def f():\n    class A:\n        x: int = 3\n\n    y = 4",
        ),
        (
            "def f(\n    a: A,  # one\n    b: B,  # two\n) -> C:  # three\n    ...",
            "def f(\n    a,  # one\n    b,  # two\n):  # three\n    ...",
        ),
    ],
)
def test_annotations_of_functions_go(text, expected):
    assert formatted(text, docstrings=True) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x: int = 3",
        "x: int",
        "def f():\n    x: int\n    x = 3",
        "class A:\n    x: int\n    y: 'A' = 3\n    z: list[int] = field(default_factory=list)",
        "class A:\n    if x:\n        y: int = 3",
        "class A:\n    class B:\n        x: int = 3",
        "def f():\n    class A:\n        x: int = 3\n\n    return A",
        "class A:\n    def f(self):\n        class B:\n            x: int = 3",
        "# 1\n# 2\n@f(lambda x=3: x)  # 3\n# 4\n@g\n# 5\nclass A:  # 6\n    # 7\n    x = 3  # 8\n\n"
        "    # 9\n    @h\n    def f(self):  # 10\n        pass\n        # 11\n\n    # 12",
    ],
)
@pytest.mark.parametrize("docstrings", [True, False])
def test_fields_variables_without_a_value_decorators_and_comments_stay(text, docstrings):
    assert tool.lean(text, docstrings=docstrings) == text


HEADS = ("def f():", "async def f():", "@g\nclass f:", "def f(a='말'):")


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ('"""Says."""', '"""Says."""'),
        ('"""Says.\n\n    Raises: x\n    """', '"""Says."""'),
        ('"""Says\n    more.\n   \n    And. Raises: x"""', '"""Says\n    more."""'),
        ('"""Says.  \n\n    More."""', '"""Says."""'),
        ('"""Says\n    more.\n    """', '"""Says\n    more."""'),
        ('"""\n    Says.\n\n    More.\n    """', '"""Says."""'),
        ('"""\n\n    Says.\n\n    More.\n    """', '"""Says."""'),
        ("r'''Says \\d.\n\n    More.'''", "r'''Says \\d.'''"),
        ('"""말한다.\n\n    더."""; x = "말"', '"""말한다."""; x = "말"'),
        ('"""Says "a"\n\n    More."""', '"""Says "a" """'),
        ('"""Says \'a\'\n\n    More."""', '"""Says \'a\'"""'),
        ('"""Says \\"\n\n    More."""', '"""Says \\" """'),
        ("'''Says 'a'\n\n    More.'''", "'''Says 'a' '''"),
        ('"""Says \\\\\n\n    More."""', '"""Says \\\\\n"""'),
        ('"""Says \\\n\n    More."""', '"""Says \\\n"""'),
        ('r"""Says \\\n\n    More."""', 'r"""Says \\\n"""'),
        ('"""  # why"""', '"""# why"""'),
        ('""" """', '""""""'),
        ('"a\\n\\nb"', '"a\\n\\nb"'),
        ("' a\\\\'", "' a\\\\'"),
        ('"""a\n\n    """ "b"', '"""a\n\n    """ "b"'),
    ],
)
def test_docstrings_are_cut_to_their_first_paragraph(docstring, expected):
    for head in HEADS:
        text = head + '\n    {}\n\n    # stays\n    y = """a\n\n    b"""  # too'
        shown = tool.lean(text.format(docstring), docstrings=True)
        assert shown == text.format(expected)
        # Where it is all of the body, it stays in the folded cell as well.
        alone = f"{head}\n    {{}}\n    # stays\n"
        if ";" not in docstring:
            shown = tool.lean(alone.format(docstring), docstrings=False)
            assert shown == alone.format(expected)


@given(
    text=st.text("a'\"\\\n .", max_size=12),
    prefix=st.sampled_from(["", "r", "U"]),
    quote=st.sampled_from(['"""', "'''"]),
    docstrings=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_cut_docstring_is_plain_python_and_says_the_same(text, prefix, quote, docstrings):
    def read(source):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a backslash that escapes nothing
            return ast.get_docstring(ast.parse(source).body[0])

    # Python joins what stands around a backslash and an end of line: a reader sees them apart.
    assume(prefix == "r" or not re.search(r"\\\n", text))
    assume(quote not in re.sub(r"\\.", "", text) + quote[:2])  # or there are several literals
    source = f"def f():\n    {prefix}{quote}{text}{quote}\n"
    try:
        whole = read(source)
    except SyntaxError:
        assume(False)
    paragraph = re.split(r"\n\s*\n", whole.strip())[0]
    assert read(tool.lean(source, docstrings=docstrings)).split() == paragraph.split()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('"""Says."""\n    x = 1', "x = 1"),
        ('"""Says.\n\n    More.\n    """\n\n    # why\n\n    x = 1', "# why\n\n    x = 1"),
        ('# first\n    """Says."""\n\n    # then\n    x = 1', "# first\n\n    # then\n    x = 1"),
        ('# first\n    """Says."""\n\n    x = 1', "# first\n\n    x = 1"),
        ('"""Says."""\n\n    @g\n    def h():\n        x = 1', "@g\n    def h():\n        x = 1"),
        ('"""Says."""; x = 1', "x = 1"),
        ('"""Says."""; x = 1; y = 2\n    z = 3', "x = 1; y = 2\n    z = 3"),
        ("'Says.'\n    x = 1", "x = 1"),
        ("'Says' '.'\n    x = 1", "x = 1"),
        ('"""Says."""\n    ...', "..."),
        ('b"a"\n    x = 1', 'b"a"\n    x = 1'),
        ('f"a"\n    x = 1', 'f"a"\n    x = 1'),
        ('x = 1\n    """Says.\n\n    More."""', 'x = 1\n    """Says.\n\n    More."""'),
    ],
)
def test_in_the_folded_cell_docstrings_go_where_a_body_holds_more(body, expected):
    for head in HEADS:
        shown = tool.lean(f"{head}\n    {body}\n", docstrings=False)
        assert shown == f"{head}\n    {expected}\n"


@pytest.mark.parametrize(
    ("text", "visible", "folded"),
    [
        ("def f(): 'a'", "def f(): 'a'", "def f(): 'a'"),
        ("def f(): 'a'; return 1", "def f(): 'a'; return 1", "def f(): return 1"),
        ('def f(): """a\n\n  b"""; return 1', 'def f(): """a"""; return 1', "def f(): return 1"),
        ("def f(a: A) -> B: return a", "def f(a): return a", "def f(a): return a"),
        ("class A: x: int = 3", "class A: x: int = 3", "class A: x: int = 3"),
    ],
)
def test_bodies_in_the_line_of_their_head(text, visible, folded):
    assert tool.lean(text, docstrings=True) == visible
    assert tool.lean(text, docstrings=False) == folded


def test_docstrings_of_methods_and_inner_functions_are_cut_too():
    text = (
        'class A:\n    """A{0}"""\n\n    def f(self):\n        """F{0}"""\n        x = 1\n\n'
        '        def g():\n            """G{0}"""\n            return x\n\n        return g'
    )
    assert tool.lean(text.format("\n\n  More.\n"), docstrings=True) == text.format("")
    assert tool.lean(text.format("\n\n  More.\n"), docstrings=False) == (
        "class A:\n    def f(self):\n        x = 1\n\n"
        "        def g():\n            return x\n\n        return g"
    )


def test_only_the_folded_cell_goes_without_docstrings(root):
    """The class of it keeps its own, which is all of its body."""
    edit(root / "transferlab/train.py", '"""Trains."""', '"""Trains.\n\n    Raises: much.\n    """')
    cells = cells_of(built(root))
    assert cells["setup"].source == SETUP and cells["train"].source == TRAIN_CELL


def test_cells_that_inline_are_formatted_and_others_are_not(root):
    library, source = root / "transferlab/train.py", root / "notebooks/01_study.py"
    edit(library, "    patience = 5", "    patience = max(\n        5,\n    )")
    edit(source, "stopping = EarlyStopping", "stopping = [\n    EarlyStopping,\n]")
    edit(source, "separator = os.sep", "separator  =  os.sep")
    edit(source, "train(data_dir)", "train( data_dir )")
    cells = cells_of(built(root))
    assert "    patience = max(5)\n" in cells["train"].source
    assert cells["train"].source.endswith("\nstopping = [EarlyStopping]")
    assert cells["setup"].source == SETUP
    assert cells["result"].source == "train( data_dir )"


def test_what_fits_in_100_columns_stands_in_a_line(root):
    line = f"    patience = [a, {'b' * 80}]"
    assert len(line) == 100
    edit(root / "transferlab/train.py", "    patience = 5", line)
    assert f"\n{line}\n" in cells_of(built(root))["train"].source
    edit(root / "transferlab/train.py", line, line.replace("a, ", "aa, "))
    assert "\n    patience = [\n        aa,\n" in cells_of(built(root))["train"].source


def test_blank_lines_in_a_row_become_one_but_not_in_strings(root):
    text = "'''a\n\n\n\nb'''"
    edit(root / "transferlab/train.py", "patience = 5", f"patience = {text}\n\n\n\n    x = 1")
    own = f"x = {text}\n\n\n\n# why\n\n   \n\nf(\n\n\n    {text},\n)\n\ny = f{text}"
    edit(root / "notebooks/01_study.py", "train(data_dir)", own)
    cells = cells_of(built(root))
    assert cells["result"].source == f"x = {text}\n\n# why\n\nf(\n\n    {text},\n)\n\ny = f{text}"
    text = text.replace("'''", '"""')
    assert cells["train"].source.startswith(
        f"class EarlyStopping:\n    patience = {text}\n\n    x = 1\n\ndef train("
    )


def test_what_only_annotations_of_functions_name_need_not_be_there(root):
    """Neither an import nor a definition of the library, and there is none of either."""
    library, source = root / "transferlab/train.py", root / "notebooks/01_study.py"
    edit(
        library,
        "from collections import",
        "from fractions import Fraction\nfrom collections import",
    )
    edit(library, "(folder, stopping=EarlyStopping)", "(folder: Fraction, stopping: EarlyStopping)")
    edit(library, '"""Trains."""', "error: UserError = folder")
    edit(source, "train: EarlyStopping, train\nstopping = EarlyStopping", "train: train")
    notebook = built(root)
    assert cells_of(notebook)["train"].source.startswith(
        "def train(folder, stopping):\n    error = f"
    )
    assert not any("Fraction" in cell.source for cell in tool.code_cells(notebook.cells))
    assert is_clean_for_ruff(root)


@pytest.mark.parametrize("options", [tool.FORMAT, tool.SORT_IMPORTS])
def test_what_ruff_refuses_is_one_line(options):
    with pytest.raises(tool.BuildError) as caught:
        tool.run_ruff(options, "x = 1\ndef f(:\n    pass", "a/b.py: cell 'c'")
    message = str(caught.value)
    assert message.startswith(f"a/b.py: cell 'c': ruff {options[0]}: ") and "\n" not in message
    assert "2:7: " in message


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="this Python does not know the syntax either"
)
def test_syntax_that_the_oldest_python_does_not_know_is_one_line(root, capsys):
    edit(root / "notebooks/01_study.py", "separator = os.sep", "type Separator = str")
    assert_refused(root, capsys, "cell 'setup': ruff check: ", "Python 3.11")


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


def test_what_only_annotations_of_fields_name_joins_the_imports(nouns):
    lines = cells_of(built(nouns))["setup"].source.split("\n")
    assert "from collections.abc import Callable" in lines  # and not Iterator
    assert "from fractions import Fraction" in lines  # named in quotes alone
    assert "from decimal import Decimal" not in lines
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
        ('# %% id="result"\n', "# %%\n", ["cell 7 ('train(data_dir)')", "has no id"]),
        ('id="result"', 'id="train"', ["cell 7", "'train' of an earlier cell"]),
        ('id="result"', 'id="the result"', ["cell 7", "invalid id"]),
        ('id="result"', 'id="result" tag=["x"]', ["cell 7", "metadata tag"]),
        ("train(data_dir)", "!ls", ["cell 'result', line 1", "not plain Python"]),
        ("train(data_dir)", "x = 1\nbreak", ["cell 'result', line 2", "not plain Python"]),
        ("import sys\n", "def f(a, a): pass\n", ["cell 'setup', line 2", "not plain Python"]),
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
        ("train(data_dir)", "# @inline transferlab.train x", ["'result'", "write `# @inline"]),
        ("train(data_dir)", "x = 1\n    # @inline transferlab.data: RED", ["write `# @inline"]),
        (
            "train(data_dir)",
            "def f():\n    # @inline transferlab.data: RED\n    return 1",
            ["'result'", "`# @inline transferlab.data: RED` is inside another statement"],
        ),
        (
            "train(data_dir)",
            "@f\n# @inline transferlab.data: RED\ndef f():\n    return 1",
            ["'result'", "inside another statement"],
        ),
        (
            "train(data_dir)",
            'x = """\n# @inline transferlab.data: RED\n"""',
            ["'result'", "inside another statement"],
        ),
        ("train(data_dir)", "# @inline transferlab.train: train", ["train is inlined twice"]),
        ("train(data_dir)", "# @inline transferlab.audit.pairs: x", ["'result'", "write"]),
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
            ["train needs EarlyStopping: add `# @inline", "before it"],
        ),
        ("import sys\n", "import sys as Counter\n", ["'setup'", "Counter would be both"]),
        ("import sys\n", "from x import train\n", ["'setup'", "train would be both"]),
        ("import sys\n", "from . import sys\n", ["'setup'", "only absolute imports"]),
        (
            "import sys\n",
            "import sys; print(1)\n",
            ["'setup'", "only absolute imports, not `print(1)`"],
        ),
        ('id="parameters"', 'id="settings"', ["the first code cell must be"]),
        ('tags=["parameters"] ', "", ["the first code cell must be", 'tags=["parameters"]']),
        ('id="setup"', 'id="imports"', ["the second code cell must be"]),
        ("# @title 준비 코드\n", "", ["'setup' must begin with a line `# @title"]),
        (
            "# @title 설정\n",
            "# @inline transferlab.data: RED\n",
            ["'parameters' comes before the imports"],
        ),
        ('id="setup"', 'id="setup" cellView="form"', ["metadata cellView"]),
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
        (
            '    """Trains."""',
            "    nonlocal folder",
            ["transferlab/train.py, line 14", "not plain Python"],
        ),
        (
            '    """Trains."""',
            "    (folder): str = folder",  # Python reads it
            ["transferlab/train.py: train has syntax that libcst cannot read"],
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
        ("describe", {"BLUE"}, {"BLUE"}),
    ],
)
def test_needs_of_types_are_those_of_their_fields(root, name, needs, first):
    assert needs_of(root / "transferlab", name, NOUNS) == (needs, first)


@pytest.mark.parametrize(
    ("definition", "needs", "first"),
    [
        ("def f(a, /, b: A, *c: B, d: C = None, **e: D) -> E: pass", "", ""),
        ("def f(a=A, *, b=B(), c=lambda: C): pass", "ABC", "AB"),
        ("def f():\n    a: A = None\n    def g(b: B) -> 'C': pass", "", ""),
        ("def f():\n    a: A\n    b: 'B'\n    return 'C'", "AB", ""),
        ("def f():\n    class G:\n        a: A = B\n        b: 'C'", "ABC", ""),
        ("async def f(a: A): return B", "B", ""),
        ("@A(b=B)\nclass f(C, metaclass=D): pass", "ABCD", "ABCD"),
        (
            "class f:\n    a: A\n    b: list[B] = C\n    def g(self, d: D) -> E: F",
            "ABCF",
            "ABC",
        ),
        ("class f:\n    a: A\n    class G:\n        b: dict[str, B | None]", "AB", "AB"),
        ("f: A = [B for _ in C]", "ABC", "ABC"),
        ("f: 'A' = 'B'", "A", ""),
        ("f = TypeVar('f', bound=A)", "A", "A"),
        (
            "class f:\n    a: 'A | None'\n    b: list['B[C]']\n    def g(_, d: 'D') -> 'E': pass",
            "ABC",
            "",
        ),
        (
            "class f:\n    a: Literal['A']\n    b: Annotated[B, 'N, A of']\n    c: 'not a type'",
            "B",
            "B",
        ),
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


def test_types_of_fields_count_as_needed_first_unless_the_module_defers_them(nouns, capsys):
    edit(nouns / "notebooks/01_study.py", "Rule, Settings", "Rule")
    edit(nouns / "notebooks/01_study.py", "Study, Fold", "Study, Settings, Fold")
    assert_refused(nouns, capsys, "Study needs Settings", "before it")
    edit(nouns / "transferlab/nouns.py", '"""Nouns."""', "from __future__ import annotations")
    assert run(nouns) == 0


@pytest.mark.parametrize(
    "own",
    [
        "class UserError(Exception):\n    pass",
        "UserError, other = OSError, 1",
        "from somewhere import Problem as UserError",
        "try:\n    UserError = OSError\nfinally:\n    pass",
    ],
)
def test_a_definition_of_the_notebook_itself_meets_a_need(root, own):
    edit(root / "notebooks/01_study.py", "# @inline transferlab.errors: UserError\n", "")
    edit(root / "notebooks/01_study.py", "train(data_dir)", f"{own}\ntrain(data_dir)")
    assert run(root) == 0


@pytest.mark.parametrize(
    "own", ["UserError", "x.UserError = 1", "def f():\n    UserError = 1", "f(UserError=1)"]
)
def test_what_does_not_define_a_name_meets_no_need(root, capsys, own):
    edit(root / "notebooks/01_study.py", "# @inline transferlab.errors: UserError\n", "")
    edit(root / "notebooks/01_study.py", "train(data_dir)", own)
    assert_refused(root, capsys, "find_images needs UserError: add")


def test_an_own_definition_comes_before_what_looks_it_up_when_defined(root, capsys):
    path = root / "notebooks/01_study.py"
    edit(path, "train: EarlyStopping, train\nstopping = EarlyStopping", "train: train")
    edit(path, "train(data_dir)", "EarlyStopping = int")
    assert_refused(root, capsys, "train needs EarlyStopping", "before it")
    line = "# @inline transferlab.train: train"
    edit(path, line, f"EarlyStopping = int\n{line}")
    assert run(root) == 0


# Limits.

ROOMY = tool.Limits(cells=99, visible=999, folded=999, cell=99, width=199, figure=9)


def limited(**limits):
    return dataclasses.replace(ROOMY, **limits)


def test_limits_are_those_of_the_contract():
    expected = tool.Limits(cells=40, visible=200, folded=700, cell=30, width=100, figure=4)
    assert expected == tool.LIMITS


@pytest.mark.parametrize(
    ("limit", "size", "message"),
    [
        ("cells", 7, "7 cells, at most 6"),
        ("visible", 12, "12 visible lines, at most 11 (largest cells: train 6, show 3, "),
        ("folded", 20, "20 folded lines, at most 19"),
        ("cell", 6, "cell 'train' has 6 lines, at most 5"),
        ("width", 67, "cell 'train' has a line of 67 characters, at most 66"),
    ],
)
def test_each_limit(root, capsys, limit, size, message):
    assert run(root, limits=limited(**{limit: size})) == 0
    parts = ["notebooks/01_study.py: " + message]
    assert_refused(root, capsys, *parts, limits=limited(**{limit: size - 1}))


def test_comments_and_docstrings_count_and_blank_lines_do_not(root, capsys):
    edit(root / "notebooks/01_study.py", "train(data_dir)", "# why\n\n   \ntrain(data_dir)")
    edit(
        root / "transferlab/train.py", '"""Trains."""', '"""Trains\n    a head.\n\n    Not this."""'
    )
    counts = tool.count_lines(built(root))
    assert counts.visible == {"parameters": 2, "train": 7, "show": 3, "result": 2}
    assert (counts.cells, counts.folded) == (7, 20)
    assert run(root, limits=limited(cell=7)) == 0
    assert_refused(root, capsys, "'train' has 7 lines", limits=limited(cell=6))


def test_a_long_line_of_the_folded_cell_is_nobodys_to_read(root):
    edit(root / "transferlab/errors.py", "What a user", "What a user" + " very" * 20)
    assert run(root, limits=limited(width=67)) == 0


def test_all_that_is_too_large_is_named_at_once(root, capsys):
    assert_refused(root, capsys, "7 cells", "; 20 folded lines", limits=limited(cells=1, folded=1))


def test_the_first_figure_comes_early(root, capsys):
    """`parameters` is the first visible cell, `show` the third."""
    assert run(root, limits=limited(figure=3)) == 0
    message = "no `plt.show()` in the first 2 visible cells (parameters, train)"
    assert_refused(root, capsys, message, limits=limited(figure=2))


@pytest.mark.parametrize(
    ("source", "shows"),
    [
        ("plt.show()", True),
        ("if x:\n    plt.show(block=True)", True),
        ("# plt.show()", False),
        ("x = 'plt.show()'", False),
        ("plt.show", False),
        ("plt.plot()", False),
        ("def f():\n    plt.show()", False),
        ("def f():\n    plt.show()\nplt.show()", True),
    ],
)
def test_a_figure_is_a_call_of_show(source, shows):
    assert tool.shows_figure(source) == shows


def test_count_prints_sizes_beside_their_limits(root, capsys):
    assert run(root, "--count", limits=limited(cells=1)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][-4:] == ["cells", "visible", "folded", "largest"]
    assert rows[1][-4:] == ["1", "999", "999", "99"]
    assert rows[2] == ["01_study", "7", "12", "20", "6", "(train)"]
    assert not (root / "01_study.ipynb").exists()


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
    assert capsys.readouterr().out == "01_study.ipynb: 7 cells, 5 outputs kept, 0 dropped\n"
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
        == "01_study.ipynb is stale from cell 'setup' on: run `make notebooks`\n"
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
        ("transferlab/train.py", "stopping=Early", "stopping: type = Early"),
        ("transferlab/data.py", "folder: Path", "folder: str | Path"),
        ("transferlab/data.py", "# an empty folder", "# a folder without files"),
        ("transferlab/data.py", "Raises UserError: there", "Raises UserError: where there"),
        ("notebooks/01_study.py", "# ## 학습", "# ## 배우기"),
        ("notebooks/01_study.py", "# @title 설정", "# @title 바꿔 볼 값"),
        ("notebooks/01_study.py", '# @param {type:"string"}', '# @param ["", "a"]'),
        ("notebooks/01_study.py", "# @title 준비 코드", "# @title 준비"),
        ("notebooks/01_study.py", 'id="result"', 'id="results"'),
        ("notebooks/01_study.py", "train(data_dir)", "# again\ntrain( data_dir )"),
    ],
)
def test_edits_of_text_keep_outputs(root, path, old, new):
    store(root)
    edit(root / path, old, new)
    assert len(kept(root)) == 4  # all but the cell that shows images
    assert run(root, "--check", "--check-outputs") == 0


def test_edits_of_code_drop_outputs_from_there_on(root, capsys):
    store(root)
    edit(root / "transferlab/train.py", "patience = 5", "patience = 6")
    assert kept(root) == ["parameters", "setup"]
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
    assert kept(root) == ["parameters", "setup", "train"]


def test_store_outputs_joins_streams_and_leaves_the_last_state_of_bars(root):
    states = ["\r  0%|   | 0/2", "\r 50%|# | 1/2", "\r100%|##| 2/2\n"]
    bar = [stream(state, "stderr") for state in states]
    wiped = [stream("begun\n"), stream("\r 50%"), stream("\r     \r")]
    value = [new_output("execute_result", {"text/plain": "3"}, execution_count=7)]
    notebook = cells_of(
        store(root, setup=bar, train=wiped, parameters=[stream("\r \r")], result=value)
    )
    assert notebook["setup"].outputs == [stream("100%|##| 2/2\n", "stderr")]
    assert notebook["train"].outputs == [stream("begun\n")]
    assert notebook["parameters"].outputs == []
    assert [
        notebook[name].execution_count for name in ("parameters", "setup", "train", "result")
    ] == [1, 2, 3, 5]
    assert notebook["result"].outputs[0].execution_count == 5


def test_store_outputs_changes_nothing_that_it_is_given(root):
    notebook = built(root)
    executed = execute(notebook, setup=[stream("a"), stream("b")])
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
