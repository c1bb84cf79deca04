"""The package as others install it: a wheel, run without the repository; the tested versions."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("run", "compare", "audit", "weights", "cache")
TESTED_EXTRAS = ("data", "offline", "run", "audit", "test")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves folders beside its source."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(
        ROOT / "transferlab", source / "transferlab", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "requirements.txt", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    built = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


def pip(*arguments):
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
    )


def run_outside(installed, folder, *command):
    """What `command` prints, run in `folder` with the installed package first on the path."""
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_module_the_type_marker_and_the_licence(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("transferlab/**/*.py")}
    assert modules <= held
    assert "transferlab/py.typed" in held
    assert {Path(name).name for name in held} >= {"LICENSE", "NOTICE"}


@pytest.mark.slow
def test_the_installed_command_says_its_version(installed, tmp_path):
    place = "import transferlab; print(transferlab.__file__)"
    found = run_outside(installed, tmp_path, sys.executable, "-c", place)
    assert Path(found.strip()).parent == installed / "transferlab"
    as_module = (sys.executable, "-m", "transferlab", "--version")
    assert run_outside(installed, tmp_path, *as_module) == "transferlab 0.1.0\n"
    script = installed / "bin" / "transferlab"
    assert run_outside(installed, tmp_path, script, "--version") == "transferlab 0.1.0\n"


@pytest.mark.slow
def test_help_names_every_command(installed, tmp_path):
    text = run_outside(installed, tmp_path, sys.executable, "-m", "transferlab", "--help")
    assert text.startswith("usage: transferlab")
    assert all(re.search(rf"^ +{name} ", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_without_the_repository(installed, tmp_path, command):
    text = run_outside(installed, tmp_path, sys.executable, "-m", "transferlab", command, "--help")
    assert text.startswith(f"usage: transferlab {command}")


def test_the_tested_versions_name_every_requirement_and_meet_it():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    tested = {canonicalize_name(name): Version(version) for name, version in pairs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    for extra in TESTED_EXTRAS:
        needed += project["optional-dependencies"][extra]
    for requirement in map(Requirement, needed):
        assert tested[canonicalize_name(requirement.name)] in requirement.specifier
    assert not [name for name, version in tested.items() if version.local], "a local build"
