"""Plants each fault in a copy of the tree and runs the tests that must find it: `make test-faults`.

Fails where a fault survives, where its text no longer stands once in its file, and where its tests fail without it.
"""

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults.planted import FAULTS, Fault
from tests.project import rules

ROOT = Path(__file__).resolve().parents[2]

# The copy's packages must be the ones imported: an editable install of the kernels puts a finder of its own first.
_PYTEST = """
import os, sys
import importlib.util
sys.meta_path[:] = [f for f in sys.meta_path if isinstance(f, type) or f.find_spec("lowbit_kernels", None) is None]
for name in ("lowbit", "lowbit_kernels"):
    place = importlib.util.find_spec(name).origin
    if not place.startswith(os.getcwd() + os.sep):
        sys.exit(f"{name} is that of {place}, not the copy's")
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
_PASSED, _FAILED = 0, 1


def place(fault: Fault, root: Path) -> str:
    """The text of the fault's file with the fault in it. Raises ValueError unless its old text stands there once."""
    text = (root / fault.file).read_text()
    if (count := text.count(fault.old)) != 1:
        raise ValueError(f"{fault.name!r}: its text stands {count} times in {fault.file}: {fault.old!r}")
    return text.replace(fault.old, fault.new)


def copied(root: Path, folder: Path) -> Path:
    """The tree's own files, copied."""
    for path in rules.files(root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


def run(tests: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs tests in a copy; the first failure ends it."""
    path = os.pathsep.join([str(folder), str(folder / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", _PYTEST, "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "CI": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def verdict(fault: Fault) -> str:
    """Empty where a test finds the fault, else what happened instead."""
    with tempfile.TemporaryDirectory() as name:
        folder = copied(ROOT, Path(name).resolve())
        (folder / fault.file).write_text(place(fault, folder))
        done = run(fault.tests, folder)
    if done.returncode == _FAILED:
        return ""
    return "survived" if done.returncode == _PASSED else f"could not be tried:\n{done.stdout[-3000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose name or file holds one of these; all by default")
    parser.add_argument("--jobs", type=int, default=1)
    chosen = parser.parse_args()
    faults = [f for f in FAULTS if not chosen.words or any(word in f.name or word in f.file for word in chosen.words)]
    for fault in faults:
        place(fault, ROOT)
    with tempfile.TemporaryDirectory() as name:
        sound = run(sorted({test for fault in faults for test in fault.tests}), copied(ROOT, Path(name).resolve()))
    if sound.returncode != _PASSED:
        print(f"the tests fail without any fault:\n{sound.stdout[-3000:]}")
        return 1
    with concurrent.futures.ThreadPoolExecutor(chosen.jobs) as pool:
        wrong = 0
        for fault, found in zip(faults, pool.map(verdict, faults), strict=True):
            wrong += bool(found)
            print(f"{found or 'found':<10} {fault.file}: {fault.name}", flush=True)
    print(f"{len(faults) - wrong} of {len(faults)} faults were found")
    return 1 if wrong or not faults else 0


if __name__ == "__main__":
    sys.exit(main())
