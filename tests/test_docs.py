"""The texts for maintainers and the README are true: files, modules, imports, links, example."""

import ast
import re
from pathlib import Path

import pytest

from transferlab.data import load_images

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def tree():
    """The files and folders that the tree names, as paths from the repository, in its order."""
    text = ARCHITECTURE.read_text(encoding="utf-8").split("## The tree")[1]
    block = re.search(r"```text\n(.*?)```", text, re.DOTALL).group(1)
    found, folders = [], {}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.split("  ")[depth].split() if depth == 0 else line.split()[:1]
        for name in names:
            path = folders.get(depth - 1, "") + name
            folders[depth] = path
            found.append(path)
    return found


def imported_modules(path):
    """The modules of its own package that a flat module imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level}


def commands_imported(folder):
    """The modules of transferlab/commands that the files of a folder import: {file: modules}."""
    found = {}
    for path in ROOT.glob(f"{folder}/**/*.py"):
        modules = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                modules |= set(re.findall(r"\bcommands\.(\w+)", name))
        if modules:
            found[path.relative_to(ROOT).as_posix()] = modules
    return found


def defined_in(path):
    """What a module defines at its top level, not what it imports; of classes the methods too."""
    names = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            methods = [one.name for one in node.body if isinstance(one, ast.FunctionDef)]
            names |= {node.name, *(f"{node.name}.{method}" for method in methods)}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
    return names


def test_every_file_that_the_tree_names_exists():
    named = tree()
    assert "transferlab/commands/options.py" in named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_module_is_in_the_tree():
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("transferlab/**/*.py")}
    modules |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/*.py")}
    marks = {name for name in modules if name.endswith("/__init__.py")}
    missing = modules - marks - set(tree())
    assert missing == set(), "add them to the tree in docs/architecture.md"


def test_a_flat_module_imports_only_those_above_it_in_the_tree():
    flat = [Path(name) for name in tree() if re.fullmatch(r"transferlab/[a-z]\w*\.py", name)]
    above = set()
    for path in flat:
        assert imported_modules(ROOT / path) <= above, path
        above.add(path.stem)


def test_every_type_is_where_the_table_says():
    text = ARCHITECTURE.read_text(encoding="utf-8").split("## The types")[1].split("## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| `(\w+)\.py` \|", text, re.MULTILINE)
    assert len(rows) > 10
    for names, module in rows:
        named = set(re.findall(r"`(\w+)`", names))
        assert named - defined_in(f"transferlab/{module}.py") == set(), module


def test_what_is_to_be_touched_is_defined_where_the_table_says():
    text = ARCHITECTURE.read_text(encoding="utf-8").split("## To change X")[1].split("\n## ")[0]
    beside = re.findall(r"`([\w.]+)` in `(\w+/[\w/]+\.py)`", text)
    beside += [
        (name, path) for path, name in re.findall(r"`(\w+/[\w/]+\.py)`[^|]*?`([A-Z]+)` there", text)
    ]
    assert {"BACKBONES", "find_pretrained", "Settings.view_of", "SCHEMA"} <= {n for n, _ in beside}
    assert [(name, path) for name, path in beside if name not in defined_in(path)] == []


def test_commands_are_imported_as_the_page_says():
    """Within the library by the command line alone; benchmarks take the shared options, tools what
    runs notebooks; report and notebooks take none."""
    text = " ".join(ARCHITECTURE.read_text(encoding="utf-8").split())
    assert "Of the commands it imports `options.py` alone." in text
    assert "`tools/publish.py` imports `transferlab`, of the commands `run.py` alone." in text
    for path in ROOT.glob("transferlab/**/*.py"):
        if path.name == "__main__.py":
            continue
        if path.parent.name == "commands":
            assert imported_modules(path) & {one.stem for one in path.parent.glob("*.py")} <= {
                "options"
            }, path
            continue
        assert not re.search(r"^\s*(from|import) .*\bcommands\b", path.read_text(), re.M), path
    assert set().union(*commands_imported("benchmarks").values()) == {"options"}
    assert commands_imported("tools") == {"tools/publish.py": {"run"}}
    assert commands_imported("report") == commands_imported("notebooks") == {}


def test_no_benchmark_imports_another():
    shared = {"common", "memory", "peer_systems", "claims"}
    for path in ROOT.glob("benchmarks/*.py"):
        text = path.read_text(encoding="utf-8")
        imported = set(re.findall(r"^\s*from (?:\.|benchmarks\.)(\w+)", text, re.MULTILINE))
        imported |= set(re.findall(r"^\s*from (?:\.|benchmarks) import (\w+)", text, re.MULTILINE))
        assert imported <= shared, path


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_in_a_page_lead_somewhere(page):
    text, place = read(page), (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (place / link).exists()] == []
    folders = "transferlab|benchmarks|report|tools|docs|notebooks|tests"
    named = re.findall(rf"`((?:{folders})/[\w./]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_pages_for_maintainers_are_linked_from_the_readme():
    readme = read("README.md")
    for page in ("CONTRIBUTING.md", "docs/architecture.md", "CHANGELOG.md", "LICENSE", "NOTICE"):
        assert f"]({page})" in readme


def test_the_results_in_the_readme_keep_their_markers():
    readme = read("README.md")
    begin = "<!-- results: rendered by `make report` -->"
    assert readme.index(begin) < readme.index("<!-- end of results -->")


def test_the_example_in_the_readme_runs(image_folder, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    small = example.replace('"resnet50", study', '"test_vit", study, weights="none"')
    assert small != example
    (tmp_path / "my_images").symlink_to(image_folder)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(small, found)
    assert len(found["images"].labels) == len(load_images(image_folder).labels)
    assert 0 <= found["result"].best.val_acc <= 1
