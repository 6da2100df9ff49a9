"""The files of CONTRIBUTING's page of seams: put where they say, found by name, with the lines that the page counts."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FILE = re.compile(r"^```python[^\n]*\n# (lowbit/\S+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_STAT = re.compile(r"^ (lowbit/\S+\.py) +\| +(\d+) \+$", re.MULTILINE)

_USE = """
import importlib, sys
import jax.numpy as jnp
import lowbit as lb

folder, *names = sys.argv[1:]
for name in names:
    package, _, module = name.rpartition(".")
    parent = importlib.import_module(package)
    parent.__path__.append(folder + "/" + package.replace(".", "/"))
    importlib.import_module(name)

fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.arange(1.0, 65.0).reshape(8, 8) - 30.5}, jnp.eye(8)
plan = lb.bind(fn, {"**": "wquarters/g4/root2"}, params, x)
packed = lb.pack(plan, params, lb.init(fn, plan, params, x))
assert (packed.params["w"].spec.format.name, packed.params["w"].spec.scale.name) == ("quarters", "root2")
lb.save(folder + "/model", plan, packed)
plan, again = lb.load(folder + "/model")
assert jnp.array_equal(lb.execute(fn, plan)(again, x), lb.execute(fn, plan)(packed, x))
print("found")
"""


def _files():
    return dict(_FILE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


def test_the_page_counts_the_lines_of_its_files():
    counted = dict(_STAT.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert counted == {name: str(source.count("\n")) for name, source in _files().items()}
    assert int(counted["lowbit/solvers/mine.py"]) < 60  # GPTQ


def test_each_piece_is_a_file_that_needs_no_line_elsewhere(tmp_path):
    """A new format and a new scale type are found by their words, in files of models too."""
    files = _files()
    for name, source in files.items():
        assert not (ROOT / name).exists()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    modules = [name.removesuffix(".py").replace("/", ".") for name in files]
    done = subprocess.run([sys.executable, "-c", _USE, str(tmp_path), *modules], capture_output=True, text=True)
    assert done.stdout.endswith("found\n"), done.stderr[-2000:]
