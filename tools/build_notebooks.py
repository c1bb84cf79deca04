"""Builds the notebooks at the repository root from their sources in notebooks/ and transferlab/.

    python tools/build_notebooks.py                  build all; keep the outputs of unchanged code
    python tools/build_notebooks.py --check          exit 1 where a notebook is not what is built
    python tools/build_notebooks.py --check-outputs  exit 1 where a code cell has no stored output
    python tools/build_notebooks.py --count          print the lines of code of each notebook

All but the first write nothing.

A source `notebooks/NN_*.py` is in jupytext's percent format, and every cell has an id:
`# %% id="train"`. A cell of lines `# @inline transferlab.train: EarlyStopping, train` becomes the
exact source of those definitions; the library's imports that they use, be it only in an annotation,
join those of the first code cell, `imports`; the next code cell is tagged `parameters`. The section
"## 준비" is folded. The library is read as text, never imported, and only its flat modules are:
transferlab/*.py, which may not import from a sub-package.

Committed notebooks are executed. An output is stored with a hash over the syntax trees, without
docstrings, of all code cells up to its own; a build keeps it as long as that hash is the same.
Cells tagged `shows-images` hold drawn pictures or nothing: pictures of other people's datasets stay
out of the repository.
"""

import argparse
import ast
import copy
import hashlib
import re
import subprocess
import symtable
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

PACKAGE = "transferlab"
SETUP = "## 준비"
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
COMPREHENSIONS = ("listcomp", "setcomp", "dictcomp", "genexpr")
# Without comment_magics=False, jupytext takes "# copy the weights" for a shell command.
PERCENT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
JUPYTEXT_KEYS = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker"}
SORT_IMPORTS = (
    sys.executable,
    "-m",
    "ruff",
    "check",
    "--isolated",
    "--quiet",
    "--select=I",
    "--fix",
    "--target-version=py311",
    "--line-length=100",
    "--config=lint.isort.combine-as-imports=true",
    "--stdin-filename=imports.py",
    "-",
)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class BuildError(Exception):
    """A source, the library or a notebook breaks the contract.

    The message is one line and says where.
    """


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many lines of code a reader is asked to take in."""

    inlined: int  # inlined in a notebook
    outside: int  # of these, outside the section "## 준비"
    cell: int  # in any one cell


LIMITS = Limits(inlined=2400, outside=700, cell=120)


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
    # Names looked up while it is being defined: decorators, bases, defaults, annotations.
    needs_first: frozenset[str]


Library = dict[str, dict[str, Definition]]  # by module, then by name


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A notebook without outputs."""

    notebook: NotebookNode
    inlined: frozenset[str]  # ids of the cells that were inlined


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Lines of code of one notebook."""

    inlined: int
    outside: int  # inlined outside "## 준비"
    cells: dict[str, int]  # by id, in order


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
        return ast.parse(source)
    except SyntaxError as error:
        raise BuildError(f"{where}, line {error.lineno}: not plain Python: {error.msg}") from None


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


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Yields every annotation in a tree: of parameters, of returned values, of fields."""
    for node in ast.walk(tree):
        annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
        if annotation is not None:
            yield annotation


def quoted(annotation: ast.AST) -> Iterator[str]:
    """Yields the strings in an annotation that stand for types: not the values of `Literal`."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield annotation.value
    if isinstance(annotation, ast.Subscript) and "Literal" in ast.unparse(annotation.value):
        return
    for child in ast.iter_child_nodes(annotation):
        yield from quoted(child)


def quoted_names(source: str) -> set[str]:
    """Returns the names in annotations that are strings: `-> "Study"`."""
    names = set()
    for annotation in annotations(ast.parse(source)):
        for text in quoted(annotation):
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


def source_of(node: ast.stmt, lines: Sequence[str]) -> str:
    """Returns a definition's exact source, with decorators and the comment lines directly above."""
    decorators = getattr(node, "decorator_list", [])
    first = min(part.lineno for part in (node, *decorators)) - 1
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    return "\n".join(lines[first : node.end_lineno])


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
    """Returns a definition with what it uses, be it only in an annotation."""
    used = names_used(source).difference(names)
    needs = sorted(used.intersection(scope.homes))
    future = {one for one in scope.imports if one.startswith("from __future__ ")}
    imports = {one for one in scope.imports if bound_name(one) in used}
    executed = "\n".join([*sorted(future), source])
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

    Raises BuildError: a form of import that is not allowed, a name defined twice, work at import.
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


def inline_lines(cell: NotebookNode) -> list[str]:
    """Returns the lines of a cell that inlines definitions; [] for any other cell."""
    lines = [line for line in cell.source.split("\n") if line.strip()]
    inlines = any(re.match(r"\s*#\s*@inline", line) for line in lines)
    return lines if inlines and cell.cell_type == "code" else []


def has_relative_import(source: str) -> bool:
    tree = ast.parse(source)
    return any(map(is_relative, ast.walk(tree)))


def named_definitions(cell: NotebookNode, library: Library, where: str) -> list[Definition]:
    """Returns the definitions that the `# @inline` lines of a cell name, in order; else [].

    Raises BuildError: other lines beside `# @inline` lines, an unknown module or name, a relative
    import in a body.
    """
    definitions = []
    for line in inline_lines(cell):
        match = re.fullmatch(rf"# @inline {PACKAGE}\.(\w+): *(.+)", line)
        if not match:
            form = f"`# @inline {PACKAGE}.module: name`"
            raise BuildError(f"{where}: a cell to inline holds only {form}, not `{line}`")
        module, names = match.groups()
        if module not in library:
            raise BuildError(f"{where}: there is no {PACKAGE}.{module}")
        for name in re.split(r"\s*,\s*", names.strip()):
            definition = library[module].get(name)
            if definition is None:
                raise BuildError(f"{where}: there is no {name!r} in {PACKAGE}.{module}")
            if has_relative_import(definition.source):
                problem = f"{name} has a relative import in its body"
                raise BuildError(f"{where}: {problem}: move it to the top of the module")
            if definition not in definitions:
                definitions.append(definition)
    return definitions


def check_needs(definitions: Sequence[Definition], where: str) -> None:
    """Raises BuildError unless what each definition uses is inlined, before it where need be."""
    known = {name for one in definitions for name in one.names}
    defined = set()
    for one in definitions:
        twice = defined.intersection(one.names)
        if twice:
            raise BuildError(f"{where}: {', '.join(sorted(twice))} is inlined twice")
        for name, module in one.needs.items():
            too_late = name in one.needs_first and name not in defined
            if name not in known or too_late:
                needs = f"{PACKAGE}.{one.module}.{one.names[0]} needs {name}"
                order = " before it" if name in known else ""
                line = f"`# @inline {PACKAGE}.{module}: {name}`"
                raise BuildError(f"{where}: {needs}: add {line}{order}")
        defined.update(one.names)


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


def import_cell(source: str, definitions: Sequence[Definition], where: str) -> str:
    """Returns the `imports` cell's source, sorted: its own and what inlined definitions use.

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
    lines = [source, *sorted(merged - own)]
    text = "\n".join(lines) + "\n"
    sorted_imports = subprocess.run(
        SORT_IMPORTS, input=text, encoding="utf-8", capture_output=True, check=True
    )
    return sorted_imports.stdout.strip()


def check_first_cells(cells: Sequence[NotebookNode], where: str) -> None:
    """Raises BuildError unless the code begins with the imports and then the parameters."""
    if not cells or cells[0].id != "imports":
        raise BuildError(f'{where}: the first code cell must be `# %% id="imports"`')
    if len(cells) < 2 or not tagged(cells[1], "parameters"):
        raise BuildError(f'{where}: the code cell after "imports" must carry tags=["parameters"]')


def fold_setup(cells: Iterable[NotebookNode]) -> dict[str, dict]:
    """Marks the headings "## 준비" as collapsed; returns the notebook's metadata that says so."""
    folded = []
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith(SETUP):
            # Colab needs the id in here, too.
            cell.metadata |= {"id": cell.id, "jp-MarkdownHeadingCollapsed": True}
            folded.append(cell.id)
    return {"colab": {"collapsed_sections": folded}} if folded else {}


def assemble(path: Path, library: Library) -> Assembled:
    """Returns the notebook of a source, without outputs.

    Raises BuildError: the source breaks the contract.
    """
    where = short(path)
    cells = read_source(path)
    code = code_cells(cells)
    check_first_cells(code, where)
    named = {}
    for cell in code:
        named[cell.id] = named_definitions(cell, library, f"{where}: cell {cell.id!r}")
    definitions = [one for several in named.values() for one in several]
    check_needs(definitions, where)
    for cell in code:
        sources = [one.source for one in named[cell.id]]
        if sources:
            cell.source = "\n\n\n".join(sources)
        tree = ast.parse(cell.source)
        if any(map(imports_package, ast.walk(tree))):
            problem = f"cell {cell.id!r} imports {PACKAGE}"
            raise BuildError(f"{where}: {problem}; a notebook stands alone")
    imports = code[0]
    imports.source = import_cell(imports.source, definitions, f"{where}: cell 'imports'")
    metadata = copy.deepcopy(METADATA) | fold_setup(cells)
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    inlined = frozenset(name for name, several in named.items() if several)
    return Assembled(notebook=nbformat.from_dict(content), inlined=inlined)


# Limits.


def has_docstring(node: ast.AST) -> bool:
    """Tells whether a node is a function or a class with a docstring.

    A string that begins a cell is no docstring: it is the cell's output.
    """
    return isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None


def code_lines(source: str) -> int:
    """Counts the lines of code: not blank, not only a comment, not of a docstring."""
    lines = set()
    for number, line in enumerate(source.split("\n"), 1):
        if re.match(r"\s*[^\s#]", line):
            lines.add(number)
    for node in filter(has_docstring, ast.walk(ast.parse(source))):
        docstring = node.body[0]
        lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def setup_ids(cells: Iterable[NotebookNode]) -> set[str]:
    """Returns the ids of the cells of `## 준비`: up to the next heading of its level or higher."""
    inside = False
    ids = set()
    for cell in cells:
        text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.MULTILINE | re.DOTALL)
        if cell.cell_type == "markdown" and re.search(r"^##?\s", text, flags=re.MULTILINE):
            inside = cell.source.startswith(SETUP)
        if inside:
            ids.add(cell.id)
    return ids


def count_lines(assembled: Assembled) -> Counts:
    """Counts the lines of code of a notebook."""
    cells = assembled.notebook.cells
    lines = {cell.id: code_lines(cell.source) for cell in code_cells(cells)}
    outside = assembled.inlined - setup_ids(cells)
    return Counts(
        inlined=sum(lines[name] for name in assembled.inlined),
        outside=sum(lines[name] for name in outside),
        cells=lines,
    )


def largest_cells(lines: dict[str, int], names: Iterable[str]) -> str:
    """Names the five largest of some cells, with their lines."""
    by_size = sorted(names, key=lambda name: (-lines[name], name))
    return ", ".join(f"{name} {lines[name]}" for name in by_size[:5])


def check_limits(assembled: Assembled, limits: Limits, where: str) -> None:
    """Raises BuildError where a notebook or a cell holds more code than a reader can take in."""
    counts = count_lines(assembled)
    for name, count in counts.cells.items():
        if count > limits.cell:
            problem = f"cell {name!r} has {count} lines of code"
            raise BuildError(f"{where}: {problem}, at most {limits.cell} are allowed")
    problem = ""
    if counts.inlined > limits.inlined:
        problem = f"{counts.inlined} inlined lines of code, at most {limits.inlined}"
    elif counts.outside > limits.outside:
        lines = f'{counts.outside} inlined lines of code outside "{SETUP}"'
        problem = f"{lines}, at most {limits.outside}"
    if problem:
        cells = largest_cells(counts.cells, assembled.inlined)
        raise BuildError(f"{where}: {problem}; largest cells: {cells}")


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


def build(source: Path, library: Library, target: Path, limits: Limits) -> Built:
    """Returns the notebook of `source`, with the outputs kept of `target`.

    Raises BuildError: the source breaks the contract, or what is at `target` cannot be read.
    """
    assembled = assemble(source, library)
    check_limits(assembled, limits, short(source))
    carried = carry_outputs(assembled.notebook, read_notebook(target))
    return Built(target=target, notebook=assembled.notebook, carried=carried)


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
    print(f"{'lines of code':40} {'inlined':>8} {'open':>6} {'largest cell':>14}")
    print(f"{'at most':40} {limits.inlined:8} {limits.outside:6} {limits.cell:14}")
    for source in sources:
        counts = count_lines(assemble(source, library))
        largest = max(counts.cells, key=counts.cells.get)
        lines = f"{counts.inlined:8} {counts.outside:6} {counts.cells[largest]:14}"
        print(f"{source.stem:40} {lines}  ({largest})")


def run(options: argparse.Namespace, limits: Limits) -> int:
    """Does what the command line asks for; returns its exit code."""
    library = read_library(options.root / PACKAGE)
    sources = sorted((options.root / "notebooks").glob("[0-9][0-9]_*.py"))
    if options.count:
        print_counts(sources, library, limits)
        return 0
    notebooks = []
    for source in sources:
        target = options.root / f"{source.stem}.ipynb"
        notebooks.append(build(source, library, target, limits))
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
        "--count": "print the lines of code",
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
