"""Builds the notebooks at the repository root from their sources in notebooks/ and transferlab/.

    python tools/build_notebooks.py                  build all; keep the outputs of unchanged code
    python tools/build_notebooks.py --check          exit 1 where a notebook is not what is built
    python tools/build_notebooks.py --check-outputs  exit 1 where a code cell has no stored output
    python tools/build_notebooks.py --count          print the size of each notebook

All but the first write nothing.

A source `notebooks/NN_*.py` is in jupytext's percent format, and every cell has an id:
`# %% id="train"`. A line `# @inline transferlab.train: EarlyStopping, train` of a code cell, which
may hold other code as well, becomes the source of those definitions as `Lean` makes it: without
the annotations of functions, with the first paragraph of docstrings, and in the folded cell without
docstrings where a body holds more. A cell that inlines is formatted: what fits in a line stands in
a line. No cell has two blank lines in a row. The library is read as text, never imported, and only
its flat modules are: transferlab/*.py, which may not import from a sub-package.

The first code cell is tagged `parameters`. The second, `setup`, is the only one that is folded: its
first line is a `# @title`, and behind that come its imports and those of all inlined definitions.
A line `{{ colab_badge }}` of a markdown cell becomes the link to the notebook in Colab.

Committed notebooks are executed. An output is stored with a hash over the syntax trees, without
docstrings, of all code cells up to its own; a build keeps it as long as that hash is the same.
Cells tagged `shows-images` hold drawn pictures or nothing: pictures of other people's datasets stay
out of the repository.
"""

import argparse
import ast
import copy
import hashlib
import io
import re
import subprocess
import symtable
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, groupby, zip_longest
from pathlib import Path

import jupytext
import libcst as cst
import nbformat
from nbformat import NotebookNode

PACKAGE = "transferlab"
PARAMETERS = "parameters"
SETUP = "setup"
TITLE = "# @title "
BADGE_LINE = r"^\{\{ colab_badge \}\}$"
COLAB = "https://colab.research.google.com"
WIDTH = 100
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
COMPREHENSIONS = ("listcomp", "setcomp", "dictcomp", "genexpr")
# Without comment_magics=False, jupytext takes "# copy the weights" for a shell command.
PERCENT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
JUPYTEXT_KEYS = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker"}
RUFF = (sys.executable, "-m", "ruff")
SORT_IMPORTS = (
    "check",
    "--select=I",
    "--fix",
    "--output-format=concise",
    "--config=lint.isort.combine-as-imports=true",
)
FORMAT = (
    "format",
    "--config=format.skip-magic-trailing-comma=true",
    "--config=lint.isort.split-on-trailing-comma=false",  # or ruff warns that the two differ
)
# What a notebook shows must run where the library does, on the oldest Python as well.
RUFF_OPTIONS = (
    "--isolated",
    "--target-version=py311",
    f"--line-length={WIDTH}",
    "--stdin-filename=cell.py",
    "-",
)
# As Colab writes it where a notebook asks for a GPU.
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Colab folds a cell by the one, JupyterLab by the other.
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}


class BuildError(Exception):
    """A source, the library or a notebook breaks the contract.

    The message is one line and says where.
    """


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a reader is asked to take in. Lines are those that are not blank."""

    cells: int  # of code and of text
    visible: int  # lines of all code cells but the folded one
    folded: int  # lines of the folded cell
    cell: int  # lines of any one visible code cell
    width: int  # characters of any one visible line of code
    figure: int  # the first figure comes within so many visible code cells


LIMITS = Limits(cells=40, visible=200, folded=700, cell=30, width=WIDTH, figure=4)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What the names of one library module stand for."""

    module: str
    imports: frozenset[str]  # its absolute imports: statements of one name each
    homes: dict[str, str]  # names of the library, its own and those it imports: their modules


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One top-level function, class or assignment of the library."""

    module: str
    names: tuple[str, ...]  # more than one for `BLUE, GREY = ...`
    source: str
    imports: frozenset[str]  # statements of its module that it uses, one name each
    needs: dict[str, str]  # other names of the library that it uses: their modules
    # Names looked up while it is being defined: decorators, bases, defaults, types of fields.
    needs_first: frozenset[str]


Library = dict[str, dict[str, Definition]]  # by module, then by name
Documented = cst.FunctionDef | cst.ClassDef
Part = str | Definition  # of a code cell: lines of its own, or what is inlined


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How large a notebook is. Lines are those that are not blank."""

    cells: int
    folded: int
    visible: dict[str, int]  # lines of each visible code cell by id, in order


@dataclass(frozen=True, kw_only=True)
class Carried:
    """How many stored outputs were still those of the code, and how many were not."""

    kept: int
    dropped: int


@dataclass(frozen=True, kw_only=True)
class Built:
    """A notebook as it should be at `target`."""

    target: Path
    notebook: NotebookNode
    carried: Carried


# The library, read as text.


def short(path: Path) -> str:
    """The last two parts of a path, as messages name files."""
    return "/".join(path.parts[-2:])


def parse(source: str, where: str) -> ast.Module:
    """Returns the syntax tree.

    Raises BuildError: `source` is not plain Python (a magic, `!command`), naming `where` and the
    line.
    """
    try:
        tree = ast.parse(source)
        compile(tree, where, "exec", dont_inherit=True)  # which also sees a `break` out of place
    except SyntaxError as error:
        raise BuildError(f"{where}, line {error.lineno}: not plain Python: {error.msg}") from None
    return tree


def runs_at_definition(table: symtable.SymbolTable) -> bool:
    """Tells whether a scope runs while what holds it is defined: a function's body runs later."""
    # Annotations have a scope of their own in Python 3.14, which defers them: earlier versions,
    # which a notebook may meet as well, do not.
    return table.get_type() in ("class", "annotation") or table.get_name() in COMPREHENSIONS


def global_names(table: symtable.SymbolTable) -> set[str]:
    """Returns the global names of a scope and of all scopes within it."""
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    for child in table.get_children():
        names |= global_names(child)
    return names


def global_names_at_definition(table: symtable.SymbolTable) -> set[str]:
    """Returns the global names that are looked up while a scope is being defined."""
    names = set()
    for symbol in table.get_symbols():
        if symbol.is_global() and symbol.is_referenced():
            names.add(symbol.get_name())
    for child in table.get_children():
        if runs_at_definition(child):
            names |= global_names_at_definition(child)
    return names


def quoted(annotation: ast.AST) -> Iterator[str]:
    """Yields the strings in an annotation that stand for types: not the values of `Literal`."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield annotation.value
    if isinstance(annotation, ast.Subscript) and "Literal" in ast.unparse(annotation.value):
        return
    for child in ast.iter_child_nodes(annotation):
        yield from quoted(child)


def quoted_names(source: str) -> set[str]:
    """Returns the names in annotations of fields that are strings: `fold: "Fold"`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.AnnAssign):
            continue
        for text in quoted(node.annotation):
            try:
                tree = ast.parse(text)
            except SyntaxError:  # a shape, or another remark inside `Annotated`
                continue
            names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names


def names_used(source: str) -> set[str]:
    """Returns the global names that `source` refers to."""
    table = symtable.symtable(source, "<definition>", "exec")
    return global_names(table) | quoted_names(source)


def names_used_first(source: str) -> set[str]:
    """Returns the global names that `source` looks up when it is executed."""
    table = symtable.symtable(source, "<definition>", "exec")
    return global_names_at_definition(table)


def is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def is_relative(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.level > 0


def imports_package(node: ast.AST) -> bool:
    """Tells whether a node imports transferlab by its name."""
    if not is_import(node):
        return False
    return re.match(rf"(import|from) (.*, )?{PACKAGE}\b", ast.unparse(node)) is not None


def split_import(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Returns the statements, one name each, that an absolute import statement stands for."""
    start = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
    return {f"{start}import {ast.unparse(alias)}" for alias in node.names}


def bound_name(statement: str) -> str:
    """Returns the name that a statement of `split_import` binds; `import a.b` binds a."""
    last_word = statement.split()[-1]
    return last_word.split(".")[0]


def check_imports(tree: ast.Module, where: str, flat: frozenset[str]) -> None:
    """Raises BuildError where a relative import is not `from .module import name`.

    And where it is from a sub-package, which is never inlined, not from one of the `flat` modules.
    """
    for node in filter(is_import, ast.walk(tree)):
        text = ast.unparse(node)
        place = f"{where}:{node.lineno}"
        if is_relative(node) and node.module and node.module.split(".")[0] not in flat:
            raise BuildError(f"{place}: `{text}`: only from a flat module, {PACKAGE}/*.py")
        plain = re.fullmatch(r"from \.\w+ import \w+(, \w+)*", text)
        odd = is_relative(node) and not plain
        if odd or imports_package(node) or text.endswith("import *"):
            raise BuildError(f"{place}: write `from .module import name`, not `{text}`")


def assigned_names(node: ast.Assign | ast.AnnAssign) -> tuple[str, ...]:
    """Returns the names that an assignment binds."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = []
    for target in targets:
        parts = (part for part in ast.walk(target) if isinstance(part, ast.Name))
        names += [part.id for part in parts if isinstance(part.ctx, ast.Store)]
    return tuple(names)


def defined_names(node: ast.stmt) -> tuple[str, ...] | None:
    """Returns the names that a top-level statement defines; None for other work.

    () for a docstring or main guard.
    """
    if isinstance(node, DOCUMENTED):
        return (node.name,)
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return assigned_names(node) or None
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    is_guard = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
    return () if is_text or is_guard else None


def has_docstring(node: ast.AST) -> bool:
    """Tells whether a node is a function or a class with a docstring.

    A string that begins a cell is no docstring: it is the cell's output.
    """
    return isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None


def start_of(node: ast.stmt) -> int:
    """Returns the index of a statement's first line, decorators included."""
    decorators = getattr(node, "decorator_list", [])
    return min(part.lineno for part in (node, *decorators)) - 1


def start_with_comments(node: ast.stmt, lines: Sequence[str]) -> int:
    """Returns the index of a statement's first line, comment lines directly above it included."""
    first = start_of(node)
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    return first


def source_of(node: ast.stmt, lines: Sequence[str]) -> str:
    """Returns a definition's exact source, with decorators and the comment lines directly above."""
    return "\n".join(lines[start_with_comments(node, lines) : node.end_lineno])


def find_sources(tree: ast.Module, text: str, where: str) -> dict[tuple[str, ...], str]:
    """Returns {the names that a definition binds: its source} of a module.

    Raises BuildError: a name defined twice, work at import.
    """
    lines = text.split("\n")
    sources = {}
    known = set()
    for node in tree.body:
        if is_import(node):
            continue
        names = defined_names(node)
        place = f"{where}:{node.lineno}"
        if names is None:
            raise BuildError(f"{place}: only imports, definitions and constants at the top level")
        twice = known.intersection(names)
        if twice:
            raise BuildError(f"{place}: {', '.join(sorted(twice))} is defined twice")
        if names and not names[0].startswith("__"):
            sources[names] = source_of(node, lines)
            known.update(names)
    return sources


def read_scope(tree: ast.Module, module: str, own: Iterable[str]) -> Scope:
    """Returns what the imports of a module and its `own` names stand for."""
    imports = set()
    homes = {}
    for node in filter(is_import, tree.body):
        if is_relative(node):
            homes |= {alias.name: node.module for alias in node.names}
        else:
            imports |= split_import(node)
    homes |= dict.fromkeys(own, module)
    return Scope(module=module, imports=frozenset(imports), homes=homes)


def describe(names: tuple[str, ...], source: str, scope: Scope) -> Definition:
    """Returns a definition with what it uses, be it only in the annotation of a field.

    Raises BuildError: libcst cannot read it.
    """
    try:
        shown = lean(source, docstrings=False)
    except cst.ParserSyntaxError:  # its message has many lines, and wrong numbers
        place = f"{PACKAGE}/{scope.module}.py"
        raise BuildError(f"{place}: {names[0]} has syntax that libcst cannot read") from None
    used = names_used(shown).difference(names)
    needs = sorted(used.intersection(scope.homes))
    future = {one for one in scope.imports if one.startswith("from __future__ ")}
    imports = {one for one in scope.imports if bound_name(one) in used}
    executed = "\n".join([*sorted(future), shown])
    return Definition(
        module=scope.module,
        names=names,
        source=source,
        imports=frozenset(future | imports),
        needs={name: scope.homes[name] for name in needs},
        needs_first=frozenset(names_used_first(executed)),
    )


def read_module(path: Path, flat: frozenset[str]) -> dict[str, Definition]:
    """Returns the definitions of one library module by name; it may import from the `flat` ones.

    Raises BuildError: a form of import that is not allowed, a name defined twice, work at import,
    syntax that cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    where = short(path)
    tree = parse(text, where)
    check_imports(tree, where, flat)
    sources = find_sources(tree, text, where)
    own = [name for names in sources for name in names]
    scope = read_scope(tree, path.stem, own)
    definitions = {}
    for names, source in sources.items():
        definition = describe(names, source, scope)
        definitions |= dict.fromkeys(names, definition)
    return definitions


def read_library(folder: Path) -> Library:
    """Returns the definitions of all flat modules but `__init__` and `__main__`.

    Raises BuildError: as `read_module`; a name at the top level of two modules.
    """
    paths = sorted(folder.glob("[!_]*.py"))
    flat = frozenset(path.stem for path in paths)
    library = {}
    homes = {}
    for path in paths:
        definitions = read_module(path, flat)
        for name in definitions:
            home = homes.setdefault(name, path.stem)
            if home != path.stem:
                other = f"a top-level name of {PACKAGE}.{home}"
                raise BuildError(f"{short(path)}: {name} is also {other}")
        library[path.stem] = definitions
    return library


# From a source to a notebook.


def code_cells(cells: Iterable[NotebookNode]) -> list[NotebookNode]:
    return [cell for cell in cells if cell.cell_type == "code"]


def tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def check_cell(cell: NotebookNode, where: str) -> None:
    """Raises BuildError: an id is missing or invalid; other metadata than id and tags."""
    name = cell.metadata.get("id")
    if name is None:
        raise BuildError(f'{where} has no id: write `# %% id="some-name"`')
    if not isinstance(name, str) or not re.fullmatch("[a-zA-Z0-9_-]{1,64}", name):
        rule = "letters, digits, - and _, at most 64"
        raise BuildError(f"{where} has the invalid id {name!r}: {rule}")
    unknown = set(cell.metadata) - {"id", "tags"} - JUPYTEXT_KEYS
    if unknown:
        keys = ", ".join(sorted(unknown))
        raise BuildError(f"{where} has the metadata {keys}: only id and tags are known")


def read_source(path: Path) -> list[NotebookNode]:
    """Returns the source's cells, each with its id.

    Raises BuildError: an id is missing, invalid or used twice; other metadata than id and tags;
    code that is no Python.
    """
    text = path.read_text(encoding="utf-8")
    cells = jupytext.reads(text, PERCENT).cells
    seen = set()
    for number, cell in enumerate(cells, 1):
        first_line = cell.source.partition("\n")[0]
        where = f"{short(path)}: cell {number} ({first_line[:50]!r})"
        check_cell(cell, where)
        name = cell.metadata.id
        if name in seen:
            raise BuildError(f"{where} has the id {name!r} of an earlier cell")
        if cell.cell_type == "code":
            parse(cell.source, f"{short(path)}: cell {name!r}")
        seen.add(name)
        cell.id = name
        kept = {key: value for key, value in cell.metadata.items() if key == "tags"}
        cell.metadata = nbformat.from_dict(kept)
    return cells


def is_inline(line: str) -> bool:
    return re.match(r"\s*#\s*@inline\b", line) is not None


def has_relative_import(source: str) -> bool:
    tree = ast.parse(source)
    return any(map(is_relative, ast.walk(tree)))


def named_definitions(line: str, library: Library, where: str) -> list[Definition]:
    """Returns the definitions that an `# @inline` line names, in order.

    Raises BuildError: an unknown module or name, a relative import in a body.
    """
    match = re.fullmatch(rf"# @inline {PACKAGE}\.(\w+): *(.+)", line)
    if not match:
        raise BuildError(f"{where}: write `# @inline {PACKAGE}.module: name`, not `{line}`")
    module, names = match.groups()
    if module not in library:
        raise BuildError(f"{where}: there is no {PACKAGE}.{module}")
    definitions = []
    for name in re.split(r"\s*,\s*", names.strip()):
        definition = library[module].get(name)
        if definition is None:
            raise BuildError(f"{where}: there is no {name!r} in {PACKAGE}.{module}")
        if has_relative_import(definition.source):
            problem = f"{name} has a relative import in its body"
            raise BuildError(f"{where}: {problem}: move it to the top of the module")
        if definition not in definitions:  # `BLUE, GREY = ...` is one
            definitions.append(definition)
    return definitions


def check_between_statements(source: str, where: str) -> None:
    """Raises BuildError where an `# @inline` line is inside a statement: a function, a string."""
    lines = source.split("\n")
    for node in ast.parse(source).body:
        for line in lines[start_of(node) : node.end_lineno]:
            if is_inline(line):
                raise BuildError(f"{where}: `{line.strip()}` is inside another statement")


def split_cell(cell: NotebookNode, library: Library, where: str) -> list[Part]:
    """Returns the parts of a code cell in order: its own lines, and what it inlines.

    Raises BuildError: as `named_definitions` and `check_between_statements`.
    """
    check_between_statements(cell.source, where)
    parts = []
    for inlines, lines in groupby(cell.source.split("\n"), key=is_inline):
        if not inlines:
            parts.append("\n".join(lines))
            continue
        for line in lines:
            named = named_definitions(line, library, where)
            parts += [one for one in named if one not in parts]
    return [part for part in parts if isinstance(part, Definition) or part.strip()]


def bound_names(part: Part) -> set[str]:
    """Returns the names that a part of a cell defines, assigns or imports."""
    if isinstance(part, Definition):
        return set(part.names)
    symbols = symtable.symtable(part, "<cell>", "exec").get_symbols()
    return {one.get_name() for one in symbols if one.is_assigned() or one.is_imported()}


def check_inlined_once(definitions: Iterable[Definition], where: str) -> None:
    """Raises BuildError where two cells inline the same definition."""
    seen = set()
    for one in definitions:
        twice = seen.intersection(one.names)
        if twice:
            raise BuildError(f"{where}: {', '.join(sorted(twice))} is inlined twice")
        seen.update(one.names)


def check_definition(one: Definition, known: set[str], bound: set[str], where: str) -> None:
    """Raises BuildError where a definition uses a name that the notebook does not know.

    Or looks one up, while it is being defined, that is not yet bound.
    """
    for name, module in one.needs.items():
        too_late = name in one.needs_first and name not in bound
        if name not in known or too_late:
            needs = f"{PACKAGE}.{one.module}.{one.names[0]} needs {name}"
            order = " before it" if name in known else ""
            line = f"`# @inline {PACKAGE}.{module}: {name}`"
            raise BuildError(f"{where}: {needs}: add {line}{order}")


def check_needs(parts: Sequence[Part], where: str) -> None:
    """Raises BuildError unless what each inlined definition uses is inlined or the notebook's own.

    And comes before the definition where need be.
    """
    known = set().union(*map(bound_names, parts))
    bound = set()
    for part in parts:
        if isinstance(part, Definition):
            check_definition(part, known, bound, where)
        bound |= bound_names(part)


def check_meanings(
    statements: Iterable[str], definitions: Sequence[Definition], where: str
) -> None:
    """Raises BuildError where an imported name would also stand for something else."""
    meanings = {}
    for one in definitions:
        meanings |= {name: f"{PACKAGE}.{one.module}.{name}" for name in one.names}
    for statement in sorted(statements):
        name = bound_name(statement)
        # `import a.b` and `import a.c` go together: both bind a.
        binds_one = re.search("^from | as ", statement)
        meaning = statement if binds_one else f"import {name}"
        earlier = meanings.setdefault(name, meaning)
        if earlier != meaning:
            raise BuildError(f"{where}: {name} would be both `{earlier}` and `{meaning}`")


def split_imports(text: str) -> tuple[str, str]:
    """Returns the import statements of own lines, with the comments above them, and the rest."""
    lines = text.split("\n")
    taken = set()
    for node in filter(is_import, ast.parse(text).body):
        taken.update(range(start_with_comments(node, lines), node.end_lineno))
    imports = [line for number, line in enumerate(lines) if number in taken]
    rest = [line for number, line in enumerate(lines) if number not in taken]
    return "\n".join(imports), "\n".join(rest)


def merge_imports(source: str, definitions: Sequence[Definition], where: str) -> str:
    """Returns own import statements, then those that inlined definitions use; not sorted.

    Raises BuildError: a statement that is no absolute import, or a name that would stand for two
    things.
    """
    own = set()
    for node in parse(source, where).body:
        if not is_import(node) or is_relative(node):
            raise BuildError(f"{where}: only absolute imports, not `{ast.unparse(node)}`")
        own |= split_import(node)
    merged = own.union(*(one.imports for one in definitions))
    check_meanings(merged, definitions, where)
    return "\n".join([source, *sorted(merged - own)]).strip()


def run_ruff(options: Sequence[str], source: str, where: str) -> str:
    """Returns a cell's source as ruff, called with those options, leaves it.

    Raises BuildError: ruff cannot read it.
    """
    command = [*RUFF, *options, *RUFF_OPTIONS]
    result = subprocess.run(command, input=f"{source}\n", encoding="utf-8", capture_output=True)
    if result.returncode:
        first_line = result.stderr.partition("\n")[0]
        raise BuildError(f"{where}: ruff {options[0]}: {first_line}")
    return result.stdout.strip()


def squeeze(source: str) -> str:
    """Returns a cell's source with one blank line for several, so that a screen holds more.

    Those in strings stay.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    ends = (token for token in tokens if token.type == tokenize.NL)
    blank = {token.start[0] for token in ends if not token.line.strip()}
    lines = enumerate(source.split("\n"), 1)
    kept = [line for number, line in lines if number not in blank or number - 1 not in blank]
    return "\n".join(kept)


def first_paragraph(text: cst.BaseString) -> cst.BaseString:
    """Returns a docstring, cut at its first blank line."""
    if not isinstance(text, cst.SimpleString) or len(text.quote) == 1:
        return text  # several literals, or one that has no blank line
    paragraph = re.split(r"\n\s*\n", text.raw_value.strip())[0].rstrip()
    # A quote would end the literal too soon, and a backslash would escape its end.
    space = {text.quote[0]: " ", "\\": "\n"}.get(paragraph[-1:], "")
    return text.with_changes(value=f"{text.prefix}{text.quote}{paragraph}{space}{text.quote}")


class Lean(cst.CSTTransformer):
    """Makes the source that a notebook shows of a definition: as a reader of it needs it.

    The annotations of functions and of their variables go: the library keeps them. Fields keep
    theirs, which make a dataclass, and so does a variable without a value. Docstrings are cut to
    their first paragraph; without `docstrings` they go too, where a body holds more.
    """

    def __init__(self, *, docstrings: bool) -> None:
        super().__init__()
        self.docstrings = docstrings
        self.around: list[Documented] = []  # the innermost last

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self.around.append(node)

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        self.around.append(node)

    def leave_FunctionDef(self, old: cst.FunctionDef, new: cst.FunctionDef) -> cst.FunctionDef:
        self.around.pop()
        return self.shorten(new.with_changes(returns=None))

    def leave_ClassDef(self, old: cst.ClassDef, new: cst.ClassDef) -> cst.ClassDef:
        self.around.pop()
        return self.shorten(new)

    def leave_Param(self, old: cst.Param, new: cst.Param) -> cst.Param:
        return new.with_changes(annotation=None)

    def leave_AnnAssign(self, old: cst.AnnAssign, new: cst.AnnAssign) -> cst.BaseSmallStatement:
        in_function = self.around and isinstance(self.around[-1], cst.FunctionDef)
        if not in_function or new.value is None:
            return new
        return cst.Assign(targets=[cst.AssignTarget(new.target)], value=new.value)

    def shorten(self, node: Documented) -> Documented:
        """Cuts or drops the docstring of a function or a class; the comments above it stay."""
        if node.get_docstring(clean=False) is None:
            return node
        first, *rest = node.body.body
        in_block = isinstance(first, cst.SimpleStatementLine)  # not in the line of the `def`
        docstring, *behind = first.body if in_block else node.body.body
        if self.docstrings or not (rest or behind):
            shown = docstring.with_changes(value=first_paragraph(docstring.value))
            return node.deep_replace(docstring, shown)
        if behind:
            return node.deep_remove(docstring)
        above = after_blanks([*first.leading_lines, *rest[0].leading_lines])
        rest[0] = rest[0].with_changes(leading_lines=above)
        return node.with_changes(body=node.body.with_changes(body=rest))


def after_blanks(lines: Sequence[cst.EmptyLine]) -> list[cst.EmptyLine]:
    """Returns the lines above a statement from the first comment on."""
    return list(dropwhile(lambda line: line.comment is None, lines))


def lean(source: str, *, docstrings: bool) -> str:
    """Returns a definition's source as a notebook shows it, see `Lean`; not formatted."""
    return cst.parse_module(source).visit(Lean(docstrings=docstrings)).code


def space_behind(part: Part) -> str:
    """Returns what follows a part of a cell: nothing between a comment and what it stands above."""
    ends_in_comment = isinstance(part, str) and part.split("\n")[-1].startswith("#")
    return "\n" if ends_in_comment else "\n\n\n"


def join_parts(parts: Iterable[Part], *, docstrings: bool = True) -> str:
    """Returns the source of a cell; of what the folded cell inlines without docstrings."""
    source = ""
    for part in parts:
        is_own = isinstance(part, str)
        source += part.strip() if is_own else lean(part.source, docstrings=docstrings)
        source += space_behind(part)
    return source.strip()


def setup_source(parts: Sequence[Part], definitions: Sequence[Definition], where: str) -> str:
    """Returns the source of the folded cell: the title, all imports, sorted, and the rest.

    Raises BuildError: as `merge_imports` and `run_ruff`.
    """
    title, _, first = parts[0].partition("\n")
    imports = []
    rest = []
    for part in (first, *parts[1:]):
        if isinstance(part, str):
            own, part = split_imports(part)
            imports.append(own)
        if isinstance(part, Definition) or part.strip():
            rest.append(part)
    merged = merge_imports("\n".join(imports).strip(), definitions, where)
    head = f"{title}\n{merged}".strip()
    return run_ruff(SORT_IMPORTS, join_parts([head, *rest], docstrings=False), where)


def check_first_cells(cells: Sequence[NotebookNode], where: str) -> None:
    """Raises BuildError unless the code begins with the parameters and then the folded cell."""
    names = [cell.id for cell in cells[:2]]
    if names[:1] != [PARAMETERS] or not tagged(cells[0], PARAMETERS):
        form = f'`# %% tags=["{PARAMETERS}"] id="{PARAMETERS}"`'
        raise BuildError(f"{where}: the first code cell must be {form}")
    if any(map(is_inline, cells[0].source.split("\n"))):
        problem = f"cell {PARAMETERS!r} comes before the imports"
        raise BuildError(f"{where}: {problem}: inline in a later cell")
    if names[1:] != [SETUP]:
        raise BuildError(f'{where}: the second code cell must be `# %% id="{SETUP}"`')
    if not cells[1].source.startswith(TITLE):
        raise BuildError(f"{where}: cell {SETUP!r} must begin with a line `{TITLE}...`")


def colab_badge(repository: str, name: str) -> str:
    """Returns the link, as markdown, that opens the notebook `name` in Colab; "" if nowhere."""
    if not repository:
        return ""
    picture = f"![Open In Colab]({COLAB}/assets/colab-badge.svg)"
    return f"[{picture}]({COLAB}/github/{repository}/blob/main/{name})"


def render_badge(source: str, badge: str) -> str:
    """Puts a badge in its line; without a badge the line goes, and the blank line behind it."""
    if badge:
        return re.sub(BADGE_LINE, badge, source, flags=re.MULTILINE)
    return re.sub(rf"{BADGE_LINE}\n{{0,2}}", "", source, flags=re.MULTILINE).strip()


def check_alone(cells: Iterable[NotebookNode], where: str) -> None:
    """Raises BuildError where a code cell imports transferlab."""
    for cell in cells:
        tree = ast.parse(cell.source)
        if any(map(imports_package, ast.walk(tree))):
            problem = f"cell {cell.id!r} imports {PACKAGE}"
            raise BuildError(f"{where}: {problem}; a notebook stands alone")


def render_cell(
    name: str, parts: Sequence[Part], definitions: Sequence[Definition], where: str
) -> str:
    """Returns the source of the code cell `name`; `definitions` are those of the whole notebook.

    Raises BuildError: as `setup_source` and `run_ruff`.
    """
    place = f"{where}: cell {name!r}"
    source = setup_source(parts, definitions, place) if name == SETUP else join_parts(parts)
    if any(isinstance(part, Definition) for part in parts):
        source = run_ruff(FORMAT, source, place)
    return squeeze(source)


def render_code(cells: Sequence[NotebookNode], library: Library, where: str) -> None:
    """Gives code cells the source that they have in the notebook.

    Raises BuildError: the source breaks the contract.
    """
    parts = {}
    for cell in cells:
        parts[cell.id] = split_cell(cell, library, f"{where}: cell {cell.id!r}")
    everything = [part for several in parts.values() for part in several]
    definitions = [part for part in everything if isinstance(part, Definition)]
    check_inlined_once(definitions, where)
    check_needs(everything, where)
    check_alone(cells, where)
    for cell in cells:
        cell.source = render_cell(cell.id, parts[cell.id], definitions, where)
    cells[1].metadata |= copy.deepcopy(FOLDED)


def assemble(path: Path, library: Library, repository: str = "") -> NotebookNode:
    """Returns the notebook of a source, without outputs.

    Raises BuildError: the source breaks the contract.
    """
    where = short(path)
    cells = read_source(path)
    code = code_cells(cells)
    check_first_cells(code, where)
    render_code(code, library, where)
    badge = colab_badge(repository, f"{path.stem}.ipynb")
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = render_badge(cell.source, badge)
    metadata = copy.deepcopy(METADATA)
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return nbformat.from_dict(content)


# Limits.


def count_full(source: str) -> int:
    """Counts the lines that are not blank: of code, comments and docstrings."""
    return sum(1 for line in source.split("\n") if line.strip())


def visible_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in code_cells(notebook.cells) if cell.id != SETUP]


def count_lines(notebook: NotebookNode) -> Counts:
    """Counts the cells of a notebook and the lines of its code."""
    folded = [cell for cell in code_cells(notebook.cells) if cell.id == SETUP]
    return Counts(
        cells=len(notebook.cells),
        folded=sum(count_full(cell.source) for cell in folded),
        visible={cell.id: count_full(cell.source) for cell in visible_cells(notebook)},
    )


def shows_figure(source: str) -> bool:
    """Tells whether a cell calls `plt.show()`, not only defines a function that does."""
    for statement in ast.parse(source).body:
        if isinstance(statement, DOCUMENTED):
            continue
        calls = (node for node in ast.walk(statement) if isinstance(node, ast.Call))
        if any(ast.unparse(call.func) == "plt.show" for call in calls):
            return True
    return False


def largest_cells(lines: dict[str, int]) -> str:
    """Names the five largest of some cells, with their lines."""
    by_size = sorted(lines, key=lambda name: (-lines[name], name))
    return ", ".join(f"{name} {lines[name]}" for name in by_size[:5])


def find_excess(notebook: NotebookNode, limits: Limits) -> Iterator[str]:
    """Yields what of a notebook is more than a reader can take in."""
    counts = count_lines(notebook)
    if counts.cells > limits.cells:
        yield f"{counts.cells} cells, at most {limits.cells}"
    visible = sum(counts.visible.values())
    if visible > limits.visible:
        largest = largest_cells(counts.visible)
        yield f"{visible} visible lines, at most {limits.visible} (largest cells: {largest})"
    if counts.folded > limits.folded:
        yield f"{counts.folded} folded lines, at most {limits.folded}"
    for name, count in counts.visible.items():
        if count > limits.cell:
            yield f"cell {name!r} has {count} lines, at most {limits.cell}"
    for cell in visible_cells(notebook):
        width = max(map(len, cell.source.split("\n")))
        if width > limits.width:
            yield f"cell {cell.id!r} has a line of {width} characters, at most {limits.width}"


def check_limits(notebook: NotebookNode, limits: Limits, where: str) -> None:
    """Raises BuildError where a notebook is too large, or its first figure comes too late."""
    problems = list(find_excess(notebook, limits))
    first = visible_cells(notebook)[: limits.figure]
    if not any(shows_figure(cell.source) for cell in first):
        names = ", ".join(cell.id for cell in first)
        problems.append(f"no `plt.show()` in the first {limits.figure} visible cells ({names})")
    if problems:
        raise BuildError(f"{where}: {'; '.join(problems)}")


# Outputs.


def syntax(node: object) -> list | str:
    """Returns a tree without positions and docstrings.

    Unlike that of `ast.dump`, it is the same in every version of Python.
    """
    if isinstance(node, list):
        return [syntax(one) for one in node]
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = dict(ast.iter_fields(node))
    if has_docstring(node):
        fields["body"] = node.body[1:]
    tree = [type(node).__name__]
    for name, value in fields.items():
        if value not in (None, []):
            tree.append([name, syntax(value)])
    return tree


def code_hashes(cells: Iterable[NotebookNode]) -> list[str]:
    """Returns a SHA-256 for each code cell: over the syntax of all code cells up to and with it."""
    running = hashlib.sha256()
    hashes = []
    for cell in code_cells(cells):
        tree = syntax(ast.parse(cell.source))
        running.update(f"{tree}\n".encode())
        hashes.append(running.hexdigest())
    return hashes


def hashed_cells(cells: Sequence[NotebookNode]) -> list[tuple[NotebookNode, str]]:
    """Returns the code cells, each with its hash."""
    return list(zip(code_cells(cells), code_hashes(cells), strict=True))


def stored_hash(cell: NotebookNode) -> str | None:
    return cell.metadata.get(PACKAGE, {}).get("hash")


def carry_outputs(notebook: NotebookNode, old: NotebookNode) -> Carried:
    """Takes over the outputs in `old` whose hash is still that of a cell."""
    stored = {stored_hash(cell): cell for cell in code_cells(old.cells) if stored_hash(cell)}
    kept = 0
    for cell, digest in hashed_cells(notebook.cells):
        before = stored.get(digest)
        # A cell that has just been tagged shows-images may still hold pictures of a dataset.
        if before is not None and tagged(before, "shows-images") == tagged(cell, "shows-images"):
            cell.outputs = before.outputs
            cell.execution_count = before.execution_count
            cell.metadata[PACKAGE] = {"hash": digest}
            kept += 1
    return Carried(kept=kept, dropped=len(stored) - kept)


def ran_cells(executed: NotebookNode) -> dict[str, NotebookNode]:
    """Returns {hash: code cell} of an executed copy, without the cell that papermill injects.

    Raises BuildError: the copy holds the state of widgets, which no static page shows.
    """
    if executed.metadata.get("widgets"):
        remedy = "use text progress bars (tqdm, not tqdm.notebook)"
        raise BuildError(f"the executed copy holds widgets; {remedy}")
    cells = [cell for cell in executed.cells if not tagged(cell, "injected-parameters")]
    return {digest: cell for cell, digest in hashed_cells(cells)}


def check_output(output: NotebookNode, name: str) -> None:
    """Raises BuildError: the output of the cell `name` is an error or a widget."""
    if output.output_type == "error":
        raise BuildError(f"cell {name!r} failed: {output.ename}: {output.evalue}")
    if any("jupyter.widget" in kind for kind in output.get("data", {})):
        remedy = "use text progress bars (tqdm, not tqdm.notebook)"
        raise BuildError(f"cell {name!r} shows a widget; {remedy}")


def clean_outputs(cell: NotebookNode, count: int) -> list[NotebookNode]:
    """Returns a copy of a cell's outputs, numbered `count`.

    Streams are joined, progress bars in their last state.

    Raises BuildError: an output is an error or a widget.
    """
    # Takes seconds to import, and builds need it not.
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    cell, _ = CoalesceStreamsPreprocessor().preprocess_cell(copy.deepcopy(cell), {}, 0)
    outputs = []
    for output in cell.outputs:
        check_output(output, cell.id)
        is_stream = output.output_type == "stream"
        if is_stream and output.text.endswith("\r"):  # a bar that wiped itself out at its end
            output.text = output.text.rstrip(" \r")
        if "execution_count" in output:
            output.execution_count = count
        if not is_stream or output.text:
            outputs.append(output)
    return outputs


def store_outputs(
    notebook: NotebookNode, executed: NotebookNode, pictures: NotebookNode | None = None
) -> NotebookNode:
    """Returns a copy of a built notebook with its executed copy's outputs and their code's hashes.

    Cells tagged `shows-images` take theirs from `pictures`, a copy executed on drawn data, or hold
    none.

    Raises BuildError: `executed` ran other code, a cell failed, or there is a widget.
    """
    notebook = copy.deepcopy(notebook)
    ran = ran_cells(executed)
    drawn = ran_cells(pictures) if pictures else {}
    for count, (cell, digest) in enumerate(hashed_cells(notebook.cells), 1):
        if digest not in ran:
            remedy = "build, then execute again"
            raise BuildError(f"cell {cell.id!r} is not what the executed copy ran: {remedy}")
        origin = drawn.get(digest) if tagged(cell, "shows-images") else ran[digest]
        cell.outputs = clean_outputs(origin, count) if origin else []
        cell.execution_count = count
        cell.metadata[PACKAGE] = {"hash": digest}
    return notebook


# The command.


def read_notebook(path: Path) -> NotebookNode:
    """Returns the notebook at `path`, or an empty one where there is none."""
    if not path.exists():
        return nbformat.v4.new_notebook()
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds
        reason = str(error).partition("\n")[0]
        remedy = "remove it to build it without outputs"
        raise BuildError(f"{path.name} cannot be read ({reason[:100]}); {remedy}") from None


def read_repository(path: Path) -> str:
    """Returns OWNER/REPO of this project on GitHub, or "" where pyproject.toml names none.

    Raises BuildError: what it names has another form.
    """
    if not path.exists():
        return ""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    repository = tables.get("tool", {}).get(PACKAGE, {}).get("repository", "")
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        place = f"{path.name}: [tool.{PACKAGE}] repository"
        raise BuildError(f"{place} must be OWNER/REPO, not {repository!r}")
    return repository


def build(source: Path, library: Library, target: Path, limits: Limits, repository: str) -> Built:
    """Returns the notebook of `source`, with the outputs kept of `target`.

    Raises BuildError: the source breaks the contract, or what is at `target` cannot be read.
    """
    notebook = assemble(source, library, repository)
    check_limits(notebook, limits, short(source))
    carried = carry_outputs(notebook, read_notebook(target))
    return Built(target=target, notebook=notebook, carried=carried)


def write_text(notebook: NotebookNode) -> str:
    """The bytes of a notebook, as text: the same for the same notebook."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def stale_at(built: Built) -> str | None:
    """Says where the file first differs from what was built, or returns None where it does not."""
    if not built.target.exists():
        return "is missing"
    if built.target.read_bytes() == write_text(built.notebook).encode():
        return None
    before = read_notebook(built.target)
    for new, old in zip_longest(built.notebook.cells, before.cells):
        if new != old:
            cell = new or old
            return f"is stale from cell {cell.id!r} on"
    return "is stale in its metadata or formatting"


def find_problems(built: Built, options: argparse.Namespace) -> Iterator[str]:
    """Yields what the checks that were asked for find in one notebook."""
    name = built.target.name
    reason = stale_at(built) if options.check else None
    if reason:
        yield f"{name} {reason}: run `make notebooks`"
    cells = code_cells(built.notebook.cells)
    missing = [cell.id for cell in cells if not stored_hash(cell)]
    if options.check_outputs and missing:
        yield f"{name} has no stored outputs for {', '.join(missing)}"


def write(built: Built) -> None:
    """Writes a notebook and says how many of its outputs were kept."""
    text = write_text(built.notebook)
    built.target.write_text(text, encoding="utf-8", newline="\n")
    cells = len(built.notebook.cells)
    carried = built.carried
    counts = f"{cells} cells, {carried.kept} outputs kept, {carried.dropped} dropped"
    print(f"{built.target.name}: {counts}")


def print_counts(sources: Iterable[Path], library: Library, limits: Limits) -> None:
    header = f"{'cells':>6} {'visible':>8} {'folded':>8} {'largest':>8}"
    print(f"{'lines that are not blank':40} {header}")
    most = f"{limits.cells:6} {limits.visible:8} {limits.folded:8} {limits.cell:8}"
    print(f"{'at most':40} {most}")
    for source in sources:
        counts = count_lines(assemble(source, library))
        visible = sum(counts.visible.values())
        largest = max(counts.visible, key=counts.visible.get)
        lines = f"{visible:8} {counts.folded:8} {counts.visible[largest]:8}"
        print(f"{source.stem:40} {counts.cells:6} {lines}  ({largest})")


def run(options: argparse.Namespace, limits: Limits) -> int:
    """Does what the command line asks for; returns its exit code."""
    library = read_library(options.root / PACKAGE)
    sources = sorted((options.root / "notebooks").glob("[0-9][0-9]_*.py"))
    if options.count:
        print_counts(sources, library, limits)
        return 0
    repository = read_repository(options.root / "pyproject.toml")
    notebooks = []
    for source in sources:
        target = options.root / f"{source.stem}.ipynb"
        notebooks.append(build(source, library, target, limits, repository))
    if not options.check and not options.check_outputs:
        for built in notebooks:
            write(built)
        return 0
    problems = [problem for built in notebooks for problem in find_problems(built, options)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None, *, limits: Limits = LIMITS) -> int:
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=root, help="default: the repository")
    checks = {
        "--check": "exit 1 where a notebook is stale",
        "--check-outputs": "exit 1 where outputs are missing",
        "--count": "print the sizes",
    }
    for option, what in checks.items():
        parser.add_argument(option, action="store_true", help=f"write nothing; {what}")
    try:
        return run(parser.parse_args(arguments), limits)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
