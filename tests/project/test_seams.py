"""The files of CONTRIBUTING's page of seams: put where they say, found by name, with the lines that the page counts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FILE = re.compile(r"^```python[^\n]*\n# (lowbit/\S+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_STAT = re.compile(r"^ (lowbit/\S+\.py) +\| +(\d+) \+$", re.MULTILINE)

_USE = """
import sys
import jax.numpy as jnp
import lowbit as lb
from lowbit.export.verify import verify

assert lb.__file__.startswith(sys.argv[1])
fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.arange(1.0, 65.0).reshape(8, 8) - 30.5}, jnp.eye(8)
for rule, shape in (("wquarters/g4/root2", (2, 8)), ("w4/c2", (1, 4))):
    plan = lb.bind(fn, {"**": rule}, params, x)
    packed = lb.pack(plan, params, lb.init(fn, plan, params, x))
    assert packed.params["w"].scale.shape == shape
    lb.save("model", plan, packed)
    plan, again = lb.load("model")
    assert jnp.array_equal(lb.execute(fn, plan)(again, x), lb.execute(fn, plan)(packed, x))
    assert rule == "w4/c2" or packed.params["w"].spec.scale.name == "root2"

ordered = lambda p, x: jnp.sort(x @ p["w"], axis=0)
plan = lb.bind(ordered, {"**": "w8,a8"}, params, x, integer=True)
state = lb.calibrate(ordered, plan, params, [(x,)])
packed = lb.pack(plan, params, state)
served = lb.execute(ordered, plan)(packed, x)
assert [step.kind for step in plan.steps] == ["input", "dot", "sort"]
assert jnp.array_equal(served, lb.simulate(ordered, plan)(params, state, x))
bundle = lb.export(ordered, plan, packed, (x,), "bundle", targets=["xla", "listing"])
rows = {row.target: row for row in verify(bundle.path).rows}
assert rows["xla"].status == "exact", rows
assert rows["listing"].measured["lines"] > 3, rows
print("found")
"""


def _files():
    return dict(_FILE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


def test_the_page_counts_the_lines_of_its_files():
    counted = dict(_STAT.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert counted == {name: str(source.count("\n")) for name, source in _files().items()}
    assert int(counted["lowbit/solvers/mine.py"]) < 60  # GPTQ


def test_each_piece_is_a_file_that_needs_no_line_elsewhere(tmp_path):
    """In a copy of lowbit with the files put where they say, words, kinds, forms and targets are found, in files of models too."""
    shutil.copytree(ROOT / "lowbit", tmp_path / "lowbit", ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in _files().items():
        assert not (ROOT / name).exists()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    modules = [name.removesuffix(".py").replace("/", ".") for name in _files()]
    code = "import " + ", ".join(modules) + _USE
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.endswith("found\n"), done.stderr[-2000:]
