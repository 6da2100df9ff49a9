"""lowbit as another project has it: by wheel alone, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
import dataclasses
from lowbit.run import iree
from mine import config as made
methods = made.methods[1::2]  # rounded, and trained with folded norms
config = dataclasses.replace(made, name="own", methods=methods, evals=(*made.evals, iree(samples=20)))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter that has both wheels, the kernels' without its native library as where no compiler is, and what they need."""
    dist, place = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("place")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(dist)]
    subprocess.run([*build, "-C", "wheel.cmake=false", str(ROOT / "kernels")], check=True)
    subprocess.run([*build, str(ROOT)], check=True)
    wheels = map(str, dist.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), *wheels], check=True)
    needed = [path for path in sys.path if path.endswith("site-packages")]  # their editable installs are not followed
    (site / "needed.pth").write_text("\n".join(needed))
    return place / "bin/python"


def called(python, folder, *words):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    return subprocess.run([str(python), *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_an_experiment_of_ones_own(python, tmp_path):
    """A network with batch norm and dropout, its data, QAT, folded norms, IREE and a report; two processes share the pieces."""
    place = called(
        python, tmp_path, "-c", "import lowbit, lowbit_kernels as k; print(lowbit.__file__, k.__file__, sep='\\n')"
    )
    assert [Path(line).is_relative_to(python.parents[1]) for line in place.stdout.splitlines()] == [True, True], (
        place.stderr
    )
    assert called(python, tmp_path, "-m", "lowbit.cli", "new", "mine").returncode == 0
    (tmp_path / "own.py").write_text(CONFIG)
    done = called(python, tmp_path, "-m", "lowbit.cli", "run", "own.py", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "runs/own"
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert set(rows) == {"float", "rtn_w4a4", "folded_w4a4"}
    assert rows["float"]["mean"] > 50  # ten classes
    assert rows["folded_w4a4"]["mean"] > 50
    for name in rows:
        found = json.loads((out / f"seed-0/{name}/result.json").read_text())["result"]
        assert found["difference"]["execute"]["max"] == 0
        assert found["difference"]["iree"]["max"] < 1e-4
        assert found["bytes"]["vmfb"] > 0
    assert (out / "report.html").read_text().count("<svg") == 4
    assert json.loads((out / "run.json").read_text())["commit"] is None
    again = called(python, tmp_path, "-m", "lowbit.cli", "run", "own.py")
    assert "3 of 3 pieces were finished" in again.stdout


def test_importing_lowbit_imports_little():
    code = "import sys, lowbit; print([m for m in ('flax', 'optax', 'rich', 'matplotlib', 'scipy.optimize', 'orbax', 'jax.experimental.pallas', 'lowbit.run') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
