"""The tree keeps the project's rules, and each rule can fail: it is also run on a tree that breaks it."""

import inspect
import subprocess
from pathlib import Path

import pytest

from tests.project import rules

ROOT = Path(__file__).resolve().parents[2]

# Rule -> (file, its text) that breaks it. Words are put together from parts, or this file would break the rules itself.
_PYPROJECT = '[project]\nname = "x"\ndependencies = ["numpy>=2", "Ml_Dtypes"]\n'
PLANTED = {
    "long_files": {"lowbit/a.py": "x = 1\n" * 401},
    "large_files": {"tests/data.bin": "x" * 500_001},
    "private_jax": {"lowbit/a.py": "from jax." + "_src import core\n"},
    "swallowed": {"lowbit/a.py": "try:\n    x = 1\nexcept ValueError:\n    pass\n"},
    "pickles": {"lowbit/a.py": "import numpy as np\nnp.load('f', allow_pickle=True)\n"},
    "kernels_is_a_package": {"kernels/__init__.py": ""},
    "kernels_know_lowbit": {"kernels/lowbit_kernels/a.py": "from lowbit.core import spec\n"},
    "machine_paths": {"README.md": "see `/ho" + "me/me/x`\n"},
    "registry_addresses": {"Makefile": "\tpip install --index" + "-url x y\n"},
    "test_selections": {"tests/test_a.py": "import pytest\n\ndef test_a():\n    pytest.skip('later')\n"},
    "loops_over_jaxprs": {"lowbit/a.py": "def f(jaxpr):\n    return [e for e in jaxpr.eqns]\n"},
    "tables_of_primitives": {"lowbit/a.py": "SAME = {'copy', 'reshape', 'squeeze', 'transpose'}\n"},
    "constant_nan": {"lowbit/a.py": "y = jnp.where(mask, jnp.float32(jnp.nan), x)\n"},
    "bare_arguments": {"lowbit/a.py": "class A:\n    def b(self, x: int): ...\n    def _c(self, x): ...\n"},
    "loose_pins": {"pyproject.toml": _PYPROJECT, "constraints/py311.txt": "numpy==2.4.6\n"},
}
RULES = {
    name: rule
    for name, rule in inspect.getmembers(rules, inspect.isfunction)
    if list(inspect.signature(rule).parameters) == ["root"] and name != "files" and not name.startswith("_")
}


def test_every_rule_has_a_planted_violation() -> None:
    assert sorted(RULES) == sorted(PLANTED)


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_tree_keeps_the_rule(name: str) -> None:
    found = RULES[name](ROOT)
    assert not found, "\n".join([inspect.getdoc(RULES[name]) or name, *found])


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_the_rule_finds_what_breaks_it(name: str, tmp_path: Path) -> None:
    for file, text in PLANTED[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert len(RULES[name](tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("swallowed", "try:\n    x = 1\nexcept:\n    raise\n"),
        ("swallowed", "try:\n    x = 1\nexcept OSError:\n    ...\n"),
        ("pickles", "from pickle import loads\n"),
        ("pickles", "import os, dill\n"),
        ("bare_arguments", "def f(x) -> int: ...\n"),
        ("machine_paths", "path = '/ro" + "ot/x'\n"),
        ("registry_addresses", "# see https://py" + "pi.org/project/x\n"),
    ],
)
def test_the_rule_finds_other_spellings(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "lowbit").mkdir()
    (tmp_path / "lowbit" / "a.py").write_text(text)
    assert len(RULES[name](tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("swallowed", "try:\n    x = 1\nexcept OSError:\n    x = 2\n"),
        ("pickles", "import numpy as np\nnp.load('f', allow_pickle=False)\n"),
        ("kernels_know_lowbit", "import lowbit.core\n"),
        ("machine_paths", "# https://example.org/home/x and path/home/x, /usr/share/datasets, ~/work/x\n"),
        ("registry_addresses", "# pip install lowbit\n"),
    ],
)
def test_the_rule_lets_good_lines_pass(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    assert not RULES[name](tmp_path)


def test_the_files_of_a_tree_are_its_own(tmp_path: Path) -> None:
    """A tree without `.git` may lie in a folder that another repository ignores, and hold a package called `data`."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("*\n")
    root = tmp_path / "data" / "lowbit"
    for name in ("experiments/data/a.py", "data/b.py", "runs/c.py", "build/d.py"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    assert rules.files(root) == [root / "experiments/data/a.py"]
