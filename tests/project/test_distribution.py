"""The wheel holds lowbit and nothing else, and starts the command line."""

import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_lowbit_alone(wheel: zipfile.ZipFile) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    folders = {name.partition("/")[0] for name in wheel.namelist()}
    assert folders == {"lowbit", f"lowbit-{version}.dist-info"}
    assert "lowbit/py.typed" in wheel.namelist()


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lowbit").rglob("*.py")}
    assert modules <= set(wheel.namelist())


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert parser["console_scripts"]["lowbit"] == "lowbit.cli:main"


def test_the_supported_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)}
    pinned = {f"3.{path.stem[3:]}" for path in (ROOT / "constraints").glob("py3*.txt")}
    makefile = re.search(r"filter \$\(PYTAG\),([\d. ]+)\)", (ROOT / "Makefile").read_text())
    assert makefile
    assert classified == pinned == set(makefile.group(1).split())


def test_the_licence_goes_with_both(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes() == (ROOT / "kernels/LICENSE").read_bytes()
    assert tomllib.loads((ROOT / "kernels/pyproject.toml").read_text())["project"]["license-files"] == ["LICENSE"]


def test_what_is_required_is_imported() -> None:
    """Every dependency of both distributions is imported by its own code; jax brings jaxlib."""
    for project, package in ((ROOT, "lowbit"), (ROOT / "kernels", "lowbit_kernels")):
        required = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
        names = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].replace("-", "_") for line in required}
        text = "\n".join(path.read_text() for path in (project / package).rglob("*.py"))
        assert {name for name in names if not re.search(rf"^\s*(import|from) {name}\b", text, re.MULTILINE)} == set()
