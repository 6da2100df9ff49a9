"""`make test-models`: public architectures from installed packages, through bind, simulate, execute, gradients, integer=True.

    python -m tests.models [--only GLOB] [--upto bind|integer] [--results PATH]

One line a model, each with a limit of processor time. The table goes to ``experiments/results/models.json``, lines
of models that were not run are kept, and ``python -m experiments.models_table README.md`` renders it. It ends with 1 where a
model that bound without help in that file does not any more, or executes something else than what was simulated.
"""

import argparse
import dataclasses
import fnmatch
import importlib
import importlib.metadata
import json
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import jax

from lowbit.run.environment import environment

from .look import RULES, Line, look, said

PACKAGES = {
    "nnx": "flax",
    "equinox": "equinox",
    "haiku": "dm-haiku",
    "huggingface": "transformers",
    "keras": "keras",
}
"""The distribution that the models of a kind are in."""
RESULTS = Path("experiments/results/models.json")
SECONDS = 400


def _late(signum: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time")


def is_worse(line: Line, known: dict[str, Any] | None) -> bool:
    """Returns whether a model binds no more, or executes what was not simulated where no compiler fuses."""
    exact = line.op_by_op if line.difference else line.difference
    return bool(exact or line.integer_difference) or bool(line.bound and not (known or {"bound": True})["bound"])


def main() -> int:
    """Runs the models of the packages and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="a glob over package/name")
    parser.add_argument("--upto", choices=("bind", "integer"), default="integer")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _late)
    kept = json.loads(given.results.read_text()) if given.results.exists() else {}
    known, worse = dict(kept.get("models", {})), []
    for package in PACKAGES:
        if not fnmatch.fnmatch(package, given.only.split("/")[0]):
            continue
        module = importlib.import_module(f"{__package__}.{package}_models")
        for name, make in module.cases():
            path = f"{package}/{name}"
            if not fnmatch.fnmatch(path, given.only) and not fnmatch.fnmatch(path, given.only + "/*"):
                continue
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                line = look(make(), is_bound_only=given.upto == "bind")
            except Exception as error:  # noqa: BLE001 - whatever it raises is what is reported
                line = Line(bound=f"not run: {said(error)}")
                traceback.print_exc(limit=-4)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            print(f"{path:40}", json.dumps(dataclasses.asdict(line)), flush=True)
            worse += [path] if is_worse(line, known.get(path)) else []
            known[path] = dataclasses.asdict(line)
            packages = {kind: importlib.metadata.version(PACKAGES[kind]) for kind in PACKAGES}
            found = {"rules": RULES, "packages": packages, "models": known} | environment()
            given.results.write_text(json.dumps(found, indent=1) + "\n")
            jax.clear_caches()
    print(f"worse: {', '.join(worse)}" if worse else "none is worse")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
