"""`make test-models`: public architectures from installed packages, through bind, simulate, execute, gradients, integer=True.

    python -m tests.models [--only GLOB] [--upto bind|integer] [--results PATH]

One line a model, each with a limit of processor time. The table goes to ``experiments/results/models.json``; lines
of models that were not run are kept. It ends with 1 where a model that bound without help in that file does not any more.
"""

import argparse
import dataclasses
import fnmatch
import functools
import importlib
import json
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb

from .case import Case

PACKAGES = ("nnx", "equinox", "haiku", "huggingface", "keras")
RESULTS = Path("experiments/results/models.json")
SECONDS = 240


@dataclasses.dataclass
class Line:
    """What became of one model.

    Attributes:
        bound: "" where ``{"**": "w8,a8"}`` binds, else the error.
        rows: operations.
        quantized: those that are quantized.
        native: those that a native kernel takes.
        same: whether what is executed is what was simulated, to the last bit; None where it was not run.
        close: largest difference of a simulated result from the float one, by the largest float one.
        gradients: "" where all gradients of a simulation are finite and some is not zero, else what they are.
        integer: "" where ``integer=True`` binds, else the first line of its refusal.
        seconds: of bind, and of everything.
    """

    bound: str = ""
    rows: int = 0
    quantized: int = 0
    native: int | None = None
    same: bool | None = None
    close: float | None = None
    gradients: str | None = None
    integer: str | None = None
    seconds: tuple[float, float] = (0.0, 0.0)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:400]


def _floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def look(case: Case, upto: str) -> Line:
    """Returns what becomes of a model."""
    line, start = Line(), time.perf_counter()
    rules = {**case.rules, "**": "w8,a8"}
    fn = functools.partial(case.fn)
    try:
        plan = lb.bind(fn, rules, case.params, *case.args)
    except Exception as error:  # noqa: BLE001 - whatever it raises is what is reported
        line.bound = _short(error)
        return line
    line.rows, line.quantized = len(plan), len(plan.quantized)
    line.seconds = (time.perf_counter() - start, 0.0)
    try:
        lb.bind(fn, rules, case.params, *case.args, integer=True)
        line.integer = ""
    except ValueError as error:
        line.integer = _short(error).split("\n")[0]
    if upto == "integer":
        qstate = lb.init(fn, plan, case.params, *case.args)
        want = jax.jit(fn)(case.params, *case.args)
        got = lb.simulate(fn, plan, custom_vjp="body")(case.params, qstate, *case.args)
        qparams = lb.pack(plan, case.params, qstate)
        served = lb.execute(fn, plan)(qparams, *case.args)
        pairs = list(zip(_floats(got), _floats(served), strict=True))
        line.same = all(np.array_equal(a, b) for a, b in pairs)
        both = list(zip(_floats(want), _floats(got), strict=True))
        line.close = max(float(jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(a)), 1e-6)) for a, b in both)
        report = str(lb.explain(fn, plan, qparams, *case.args))
        line.native = sum("cpu" in text.split() for text in report.splitlines())
        line.gradients = _gradients(fn, plan, case, qstate)
    line.seconds = (line.seconds[0], time.perf_counter() - start)
    return line


def _gradients(fn: Any, plan: Any, case: Case, qstate: Any) -> str:
    simulated = lb.simulate(fn, plan, custom_vjp="body")

    def loss(params: Any) -> Any:
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in _floats(simulated(params, qstate, *case.args)))

    found = _floats(jax.jit(jax.grad(loss, allow_int=True))(case.params))
    if not all(bool(jnp.all(jnp.isfinite(g))) for g in found):
        return "not finite"
    return "" if any(bool(jnp.any(g != 0)) for g in found) else "all zero"


def _late(signum: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time")


def main() -> int:
    """Runs the models of the packages and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="a glob over package/name")
    parser.add_argument("--upto", choices=("bind", "integer"), default="integer")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _late)
    known = json.loads(given.results.read_text())["models"] if given.results.exists() else {}
    worse = []
    for package in PACKAGES:
        if not fnmatch.fnmatch(package, given.only.split("/")[0]):
            continue
        module = importlib.import_module(
            f".{package}_models" if package != "huggingface" else f".{package}", __package__
        )
        for name, make in module.cases():
            path = f"{package}/{name}"
            if not fnmatch.fnmatch(path, given.only) and not fnmatch.fnmatch(path, given.only + "/*"):
                continue
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                line = look(make(), given.upto)
            except Exception as error:  # noqa: BLE001
                line = Line(bound=f"not run: {_short(error)}")
                traceback.print_exc(limit=-4)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            print(f"{path:40}", json.dumps(dataclasses.asdict(line)), flush=True)
            if line.bound and known.get(path, {"bound": line.bound})["bound"] == "":
                worse.append(path)
            known[path] = dataclasses.asdict(line)
            given.results.write_text(json.dumps({"rules": "**: w8,a8", "models": known}, indent=1) + "\n")
            jax.clear_caches()
    bound = sum(not line["bound"] for line in known.values())
    same = sum(bool(line["same"]) for line in known.values())
    integer = sum(line["integer"] == "" for line in known.values())
    print(
        f"{len(known)} models: {bound} bind without help, {same} execute what is simulated, {integer} bind with integer=True"
    )
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
