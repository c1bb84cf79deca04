"""Builds the notebooks at the repository root from their sources in notebooks/ and the code in transferlab/.

    python tools/build_notebooks.py                   build all; outputs whose code has not changed are kept
    python tools/build_notebooks.py --check           write nothing; exit 1 where a notebook is not what would be built
    python tools/build_notebooks.py --check-outputs   write nothing; exit 1 where a code cell has no stored output
    python tools/build_notebooks.py --count           write nothing; print how many lines of code each notebook holds

A source `notebooks/NN_*.py` is in jupytext's percent format, and every cell has an id: `# %% id="train"`. A cell of
lines `# @inline transferlab.train: EarlyStopping, train` becomes the exact source of those definitions; the library's
imports that they use join those of the first code cell, `imports`; the next code cell is tagged `parameters`. The
section "## 준비" is folded. The library is read as text, never imported.

Committed notebooks are executed. An output is stored with a hash over the syntax trees, without docstrings, of all code
cells up to its own; a build keeps it as long as that hash is the same. Cells tagged `shows-images` hold drawn pictures
or nothing: pictures of other people's datasets stay out of the repository.
"""

import argparse
import ast
import copy
import hashlib
import re
import subprocess
import symtable
import sys
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat

PACKAGE = "transferlab"
SETUP = "## 준비"
MAX_INLINED, MAX_OPEN, MAX_CELL = 2000, 500, 120
# Without comment_magics=False, jupytext takes a comment such as "# copy the weights" for a shell command.
PERCENT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
JUPYTEXT_KEYS = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker"}
SORT_IMPORTS = [
    "ruff",
    "check",
    "--isolated",
    "--quiet",
    "--select=I",
    "--fix",
    "--target-version=py311",
]
SORT_IMPORTS += [
    "--line-length=120",
    "--config=lint.isort.combine-as-imports=true",
    "--stdin-filename=imports.py",
    "-",
]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class BuildError(Exception):
    """A source, the library or a notebook breaks the contract; the message is one line and says where."""


class Definition(NamedTuple):
    """One top-level function, class or assignment of the library."""

    module: str
    names: tuple  # more than one for `BLUE, GREY = ...`
    source: str
    imports: set  # statements of its module that it uses, one name each
    needs: dict  # other names of the library that it uses: their modules
    needs_first: (
        set  # names looked up while it is being defined: decorators, bases, defaults, annotations
    )


# The library, read as text.


def short(path):
    """The last two parts of a path, as messages name files."""
    return "/".join(path.parts[-2:])


def parse(source, where):
    """Returns the syntax tree.

    Raises BuildError: `source` is not plain Python (a magic, `!command`), naming `where` and the line.
    """
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise BuildError(f"{where}, line {error.lineno}: not plain Python: {error.msg}") from None


def names_used(source, at_definition=False):
    """Returns the global names that `source` refers to; with `at_definition`, without those in function bodies."""

    def visit(table):
        symbols = [symbol for symbol in table.get_symbols() if symbol.is_global()]
        names = {
            symbol.get_name() for symbol in symbols if symbol.is_referenced() or not at_definition
        }
        for child in table.get_children():
            runs_now = child.get_type() == "class" or child.get_name() in {
                "listcomp",
                "setcomp",
                "dictcomp",
                "genexpr",
            }
            names |= visit(child) if runs_now or not at_definition else set()
        return names

    return visit(symtable.symtable(source, "<definition>", "exec"))


def is_import(node):
    return isinstance(node, (ast.Import, ast.ImportFrom))


def imports_package(node):
    """Tells whether a node imports transferlab by its name."""
    return is_import(node) and bool(
        re.match(rf"(import|from) (.*, )?{PACKAGE}\b", ast.unparse(node))
    )


def split_import(node):
    """Returns the statements, one name each, that an absolute import statement stands for."""
    start = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
    return {f"{start}import {ast.unparse(alias)}" for alias in node.names}


def bound_name(statement):
    """Returns the name that a statement of `split_import` binds; `import a.b` binds a."""
    return statement.split()[-1].split(".")[0]


def check_import_forms(tree, where):
    """Raises BuildError where a relative import is not `from .module import name`, or takes another form."""
    for node in filter(is_import, ast.walk(tree)):
        text = ast.unparse(node)
        odd = text.startswith("from .") and not re.fullmatch(r"from \.\w+ import \w+(, \w+)*", text)
        if odd or imports_package(node) or text.endswith("import *"):
            raise BuildError(
                f"{where}:{node.lineno}: write `from .module import name`, not `{text}`"
            )


def defined_names(node):
    """Returns the names that a top-level statement defines: () for a docstring or main guard, None for other work."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return (node.name,)
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        parts = [
            part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
        ]
        return tuple(part.id for part in parts if isinstance(part.ctx, ast.Store)) or None
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    is_guard = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
    return () if is_text or is_guard else None


def source_of(node, lines):
    """Returns the exact source of a definition, with its decorators and the comment lines directly above."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    return "\n".join(lines[first : node.end_lineno])


def read_module(path):
    """Returns the definitions of one library module by name.

    Raises BuildError: a form of import that is not allowed, a name defined twice, work at import.
    """
    text = path.read_text(encoding="utf-8")
    tree = parse(text, short(path))
    check_import_forms(tree, short(path))
    imports, homes, sources = set(), {}, {}
    for node in tree.body:
        names = defined_names(node)
        if isinstance(node, ast.ImportFrom) and node.level:
            homes |= {alias.name: node.module for alias in node.names}
        elif is_import(node):
            imports |= split_import(node)
        elif names is None:
            raise BuildError(
                f"{short(path)}:{node.lineno}: only imports, definitions and constants at the top level"
            )
        elif twice := {name for known in sources for name in known} & set(names):
            raise BuildError(
                f"{short(path)}:{node.lineno}: {', '.join(sorted(twice))} is defined twice"
            )
        elif names and not names[0].startswith("__"):
            sources[names] = source_of(node, text.split("\n"))
    homes |= {name: path.stem for names in sources for name in names}
    future = {statement for statement in imports if statement.startswith("from __future__ ")}
    definitions = {}
    for names, source in sources.items():
        used = names_used(source).difference(names)
        definition = Definition(
            module=path.stem,
            names=names,
            source=source,
            imports=future | {statement for statement in imports if bound_name(statement) in used},
            needs={other: homes[other] for other in sorted(used & set(homes))},
            needs_first=names_used("\n".join([*sorted(future), source]), at_definition=True),
        )
        definitions |= dict.fromkeys(names, definition)
    return definitions


def read_library(folder):
    """Returns {module: {name: Definition}} of all modules in `folder` but `__init__` and `__main__`.

    Raises BuildError: as `read_module`; a name at the top level of two modules.
    """
    library, homes = {}, {}
    for path in sorted(folder.glob("[!_]*.py")):
        library[path.stem] = read_module(path)
        for name in library[path.stem]:
            if homes.setdefault(name, path.stem) != path.stem:
                raise BuildError(
                    f"{short(path)}: {name} is also a top-level name of {PACKAGE}.{homes[name]}"
                )
    return library


# From a source to a notebook.


def code_cells(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def read_source(path):
    """Returns the source's cells, each with its id.

    Raises BuildError: an id is missing, invalid or used twice; other metadata than id and tags; code that is no Python.
    """
    cells, seen = jupytext.reads(path.read_text(encoding="utf-8"), PERCENT).cells, set()
    for number, cell in enumerate(cells, 1):
        where = f"{short(path)}: cell {number} ({cell.source.partition(chr(10))[0][:50]!r})"
        name = cell.metadata.get("id")
        if name is None:
            raise BuildError(f'{where} has no id: write `# %% id="some-name"`')
        if not isinstance(name, str) or not re.fullmatch("[a-zA-Z0-9_-]{1,64}", name):
            raise BuildError(
                f"{where} has the invalid id {name!r}: letters, digits, - and _, at most 64"
            )
        if name in seen:
            raise BuildError(f"{where} has the id {name!r} of an earlier cell")
        if unknown := set(cell.metadata) - {"id", "tags"} - JUPYTEXT_KEYS:
            raise BuildError(
                f"{where} has the metadata {', '.join(sorted(unknown))}: only id and tags are known"
            )
        if cell.cell_type == "code":
            parse(cell.source, f"{short(path)}: cell {name!r}")
        seen.add(name)
        cell.id = name
        cell.metadata = nbformat.from_dict(
            {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
        )
    return cells


def named_definitions(cell, library, where):
    """Returns the Definitions that the `# @inline` lines of a cell name, in order; [] for any other cell.

    Raises BuildError: other lines beside `# @inline` lines, an unknown module or name, a relative import in a body.
    """
    lines = [line for line in cell.source.split("\n") if line.strip()]
    if cell.cell_type != "code" or not any(re.match(r"\s*#\s*@inline", line) for line in lines):
        return []
    definitions = []
    for line in lines:
        match = re.fullmatch(rf"# @inline {PACKAGE}\.(\w+): *(.+)", line)
        if not match:
            raise BuildError(
                f"{where}: a cell to inline holds only `# @inline {PACKAGE}.module: name`, not `{line}`"
            )
        for name in re.split(r"\s*,\s*", match[2].strip()):
            module = f"{PACKAGE}.{match[1]}"
            definition = library.get(match[1], {}).get(name)
            if definition is None:
                raise BuildError(
                    f"{where}: there is no {f'{name!r} in ' * (match[1] in library)}{module}"
                )
            if re.search(r"^\s+from \.", definition.source, flags=re.MULTILINE):
                raise BuildError(
                    f"{where}: {name} has a relative import in its body: move it to the top of the module"
                )
            if definition not in definitions:
                definitions.append(definition)
    return definitions


def check_needs(definitions, where):
    """Raises BuildError unless what each definition uses is inlined too, and before it where that is needed."""
    known, defined = {name for one in definitions for name in one.names}, set()
    for one in definitions:
        if twice := defined.intersection(one.names):
            raise BuildError(f"{where}: {', '.join(sorted(twice))} is inlined twice")
        for name, module in one.needs.items():
            if name not in known or (name in one.needs_first and name not in defined):
                needs = f"{PACKAGE}.{one.module}.{one.names[0]} needs {name}"
                order = " before it" if name in known else ""
                raise BuildError(
                    f"{where}: {needs}: add `# @inline {PACKAGE}.{module}: {name}`{order}"
                )
        defined.update(one.names)


def import_cell(source, definitions, where):
    """Returns the source of the `imports` cell: its own imports and those that the inlined definitions use, sorted.

    Raises BuildError: a statement that is no absolute import, or a name that would stand for two things.
    """
    nodes = parse(source, where).body
    for node in nodes:
        if not is_import(node) or getattr(node, "level", 0):
            raise BuildError(f"{where}: only absolute imports, not `{ast.unparse(node)}`")
    own = set().union(*map(split_import, nodes))
    merged = own.union(*(one.imports for one in definitions))
    meanings = {name: f"{PACKAGE}.{one.module}.{name}" for one in definitions for name in one.names}
    for statement in sorted(merged):
        name = bound_name(statement)
        # `import a.b` and `import a.c` go together: both bind a.
        meaning = statement if re.search("^from | as ", statement) else f"import {name}"
        if meanings.setdefault(name, meaning) != meaning:
            raise BuildError(f"{where}: {name} would be both `{meanings[name]}` and `{meaning}`")
    text = "\n".join([source, *sorted(merged - own)]) + "\n"
    command = [sys.executable, "-m", *SORT_IMPORTS]
    return subprocess.run(
        command, input=text, encoding="utf-8", capture_output=True, check=True
    ).stdout.strip()


def assemble(path, library):
    """Returns the notebook of a source, without outputs, and the ids of the cells that were inlined.

    Raises BuildError: the source breaks the contract.
    """
    cells, where = read_source(path), short(path)
    code = code_cells(cells)
    if not code or code[0].id != "imports":
        raise BuildError(f'{where}: the first code cell must be `# %% id="imports"`')
    if len(code) < 2 or not tagged(code[1], "parameters"):
        raise BuildError(f'{where}: the code cell after "imports" must carry tags=["parameters"]')
    named = [
        (cell, named_definitions(cell, library, f"{where}: cell {cell.id!r}")) for cell in code
    ]
    definitions = [one for _, definitions in named for one in definitions]
    check_needs(definitions, where)
    for cell, cell_definitions in named:
        if cell_definitions:
            cell.source = "\n\n\n".join(one.source for one in cell_definitions)
        if any(map(imports_package, ast.walk(ast.parse(cell.source)))):
            raise BuildError(
                f"{where}: cell {cell.id!r} imports {PACKAGE}; a notebook stands alone"
            )
    code[0].source = import_cell(code[0].source, definitions, f"{where}: cell 'imports'")
    metadata = copy.deepcopy(METADATA)
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith(SETUP):
            cell.metadata |= {
                "id": cell.id,
                "jp-MarkdownHeadingCollapsed": True,
            }  # Colab needs the id in here, too
            metadata.setdefault("colab", {"collapsed_sections": []})["collapsed_sections"].append(
                cell.id
            )
    notebook = nbformat.from_dict(
        {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    )
    return notebook, {cell.id for cell, cell_definitions in named if cell_definitions}


# Limits.


def without_docstring(node):
    """Returns a node's body, without the docstring where it is a function or a class.

    A string that begins a cell is no docstring: it is the cell's output.
    """
    documented = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    return (
        node.body[1:]
        if documented and ast.get_docstring(node, clean=False) is not None
        else node.body
    )


def code_lines(source):
    """Counts the lines of code: not blank, not only a comment, not of a docstring."""
    texts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(getattr(node, "body", None), list) and len(without_docstring(node)) < len(
            node.body
        ):
            texts |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = {
        number for number, line in enumerate(source.split("\n"), 1) if re.match(r"\s*[^\s#]", line)
    }
    return len(lines - texts)


def setup_ids(cells):
    """Returns the ids of the cells from the heading `## 준비` to the next heading of its level or higher."""
    inside, ids = False, set()
    for cell in cells:
        text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.MULTILINE | re.DOTALL)
        if cell.cell_type == "markdown" and re.search(r"^##?\s", text, flags=re.MULTILINE):
            inside = cell.source.startswith(SETUP)
        if inside:
            ids.add(cell.id)
    return ids


def count_lines(notebook, inlined):
    """Returns lines of code: (inlined, inlined outside "준비", {cell id: lines})."""
    lines = {cell.id: code_lines(cell.source) for cell in code_cells(notebook.cells)}
    outside = inlined - setup_ids(notebook.cells)
    return sum(lines[name] for name in inlined), sum(lines[name] for name in outside), lines


def check_limits(notebook, inlined, where):
    """Raises BuildError where a notebook or a cell holds more code than a reader can take in."""
    total, outside, lines = count_lines(notebook, inlined)
    for name, count in lines.items():
        if count > MAX_CELL:
            raise BuildError(
                f"{where}: cell {name!r} has {count} lines of code, at most {MAX_CELL} are allowed"
            )
    for count, limit, kind in [
        (total, MAX_INLINED, ""),
        (outside, MAX_OPEN, f' outside "{SETUP}"'),
    ]:
        if count > limit:
            largest = sorted(inlined, key=lambda name: (-lines[name], name))[:5]
            cells = ", ".join(f"{name} {lines[name]}" for name in largest)
            raise BuildError(
                f"{where}: {count} inlined lines of code{kind}, at most {limit}; largest cells: {cells}"
            )


# Outputs.


def syntax(node):
    """Returns a tree without positions and docstrings; unlike `ast.dump`, the same in every version of Python."""
    if isinstance(node, list):
        return [syntax(one) for one in node]
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(fields.get("body"), list):
        fields["body"] = without_docstring(node)
    return [
        type(node).__name__,
        *([name, syntax(value)] for name, value in fields.items() if value not in (None, [])),
    ]


def code_hashes(cells):
    """Returns, for each code cell, the SHA-256 over the syntax of all code cells up to and including it."""
    running, hashes = hashlib.sha256(), []
    for cell in code_cells(cells):
        running.update(f"{syntax(ast.parse(cell.source))}\n".encode())
        hashes.append(running.hexdigest())
    return hashes


def stored_hash(cell):
    return cell.metadata.get(PACKAGE, {}).get("hash")


def carry_outputs(notebook, old):
    """Takes over the outputs in `old` whose hash is still that of a cell; returns how many were kept and dropped."""
    stored = {stored_hash(cell): cell for cell in code_cells(old.cells) if stored_hash(cell)}
    kept = 0
    for cell, digest in zip(code_cells(notebook.cells), code_hashes(notebook.cells)):
        before = stored.get(digest)
        # A cell that has just been tagged shows-images may still hold pictures of a dataset.
        if before is not None and tagged(before, "shows-images") == tagged(cell, "shows-images"):
            cell.outputs, cell.execution_count = before.outputs, before.execution_count
            cell.metadata[PACKAGE] = {"hash": digest}
            kept += 1
    return kept, len(stored) - kept


def ran_cells(executed):
    """Returns {hash: code cell} of an executed copy, without the cell that papermill injects.

    Raises BuildError: the copy holds the state of widgets, which no static page shows.
    """
    if executed.metadata.get("widgets"):
        raise BuildError(
            "the executed copy holds widgets; use text progress bars (tqdm, not tqdm.notebook)"
        )
    cells = [cell for cell in executed.cells if not tagged(cell, "injected-parameters")]
    return dict(zip(code_hashes(cells), code_cells(cells)))


def clean_outputs(cell, count):
    """Returns a copy of a cell's outputs: streams joined, progress bars in their last state, numbered `count`.

    Raises BuildError: an output is an error or a widget.
    """
    from nbconvert.preprocessors import (
        CoalesceStreamsPreprocessor,
    )  # takes seconds to import, and builds need it not

    cell, _ = CoalesceStreamsPreprocessor().preprocess_cell(copy.deepcopy(cell), {}, 0)
    for output in cell.outputs:
        if output.output_type == "error":
            raise BuildError(f"cell {cell.id!r} failed: {output.ename}: {output.evalue}")
        if any("jupyter.widget" in kind for kind in output.get("data", {})):
            raise BuildError(
                f"cell {cell.id!r} shows a widget; use text progress bars (tqdm, not tqdm.notebook)"
            )
        if output.output_type == "stream" and output.text.endswith(
            "\r"
        ):  # a bar that wiped itself out at its end
            output.text = output.text.rstrip(" \r")
        if "execution_count" in output:
            output.execution_count = count
    return [output for output in cell.outputs if output.output_type != "stream" or output.text]


def store_outputs(notebook, executed, pictures=None):
    """Returns a copy of a built notebook that holds the outputs of its executed copy, with the hashes of their code.

    Cells tagged `shows-images` take theirs from `pictures`, a copy executed on drawn data, or hold none.

    Raises BuildError: `executed` ran other code, a cell failed, or there is a widget.
    """
    notebook = copy.deepcopy(notebook)
    ran, drawn = ran_cells(executed), ran_cells(pictures) if pictures else {}
    for count, (cell, digest) in enumerate(
        zip(code_cells(notebook.cells), code_hashes(notebook.cells)), 1
    ):
        if digest not in ran:
            raise BuildError(
                f"cell {cell.id!r} is not what the executed copy ran: build, then execute again"
            )
        origin = drawn.get(digest) if tagged(cell, "shows-images") else ran[digest]
        cell.outputs = clean_outputs(origin, count) if origin else []
        cell.execution_count = count
        cell.metadata[PACKAGE] = {"hash": digest}
    return notebook


# The command.


def read_notebook(path):
    """Returns the notebook at `path`, or an empty one where there is none."""
    if not path.exists():
        return nbformat.v4.new_notebook()
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds
        reason = (str(error).splitlines() or [""])[0][:100]
        raise BuildError(
            f"{path.name} cannot be read ({reason}); remove it to build it without outputs"
        ) from None


def build(source, library, target):
    """Returns (notebook, outputs kept, outputs dropped): the notebook of `source`, with the outputs kept of `target`.

    Raises BuildError: the source breaks the contract, or what is at `target` cannot be read.
    """
    notebook, inlined = assemble(source, library)
    check_limits(notebook, inlined, short(source))
    kept, dropped = carry_outputs(notebook, read_notebook(target))
    return notebook, kept, dropped


def write_text(notebook):
    """The bytes of a notebook, as text: the same for the same notebook."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def stale_at(notebook, target):
    """Says where the file at `target` first differs from what was built, or returns None where it does not."""
    if not target.exists():
        return "is missing"
    if target.read_bytes() == write_text(notebook).encode():
        return None
    for new, old in zip_longest(notebook.cells, read_notebook(target).cells):
        if new != old:
            return f"is stale from cell {(new or old).id!r} on"
    return "is stale in its metadata or formatting"


def print_counts(sources, library):
    print(f"{'lines of code':40} {'inlined':>8} {'open':>6} {'largest cell':>14}")
    print(f"{'at most':40} {MAX_INLINED:8} {MAX_OPEN:6} {MAX_CELL:14}")
    for source in sources:
        total, outside, lines = count_lines(*assemble(source, library))
        largest = max(lines, key=lines.get)
        print(f"{source.stem:40} {total:8} {outside:6} {lines[largest]:14}  ({largest})")


def run(options):
    """Does what the command line asks for; returns its exit code."""
    library = read_library(options.root / PACKAGE)
    sources = sorted((options.root / "notebooks").glob("[0-9][0-9]_*.py"))
    if options.count:
        print_counts(sources, library)
        return 0
    targets = [options.root / f"{source.stem}.ipynb" for source in sources]
    built = [build(source, library, target) for source, target in zip(sources, targets)]
    problems = []
    for target, (notebook, kept, dropped) in zip(targets, built):
        if options.check and (reason := stale_at(notebook, target)):
            problems.append(f"{target.name} {reason}: run `make notebooks`")
        if options.check_outputs:
            missing = [cell.id for cell in code_cells(notebook.cells) if not stored_hash(cell)]
            problems += (
                [f"{target.name} has no stored outputs for {', '.join(missing)}"] if missing else []
            )
        if not options.check and not options.check_outputs:
            target.write_text(write_text(notebook), encoding="utf-8", newline="\n")
            print(
                f"{target.name}: {len(notebook.cells)} cells, {kept} outputs kept, {dropped} dropped"
            )
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=root, help="default: the repository")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a notebook is stale"
    )
    parser.add_argument(
        "--check-outputs",
        action="store_true",
        help="write nothing; exit 1 where outputs are missing",
    )
    parser.add_argument(
        "--count", action="store_true", help="write nothing; print the lines of code"
    )
    try:
        return run(parser.parse_args(arguments))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
