"""Every public function, called wrongly: the calls are made from the signatures, and the answer must name the argument.

For every parameter: None, values of other types, what belongs to another parameter, a tree that lacks something. The answer is
a TypeError or ValueError that lowbit itself raises, with the parameter's name in it.
"""

import inspect
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import lowbit as lb
from lowbit.allocate.scores import Scores
from lowbit.core.moments import ChannelMax

from .answers import Call, Wrong, answers

PACKAGE = str(Path(lb.__file__).parent)


def model(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


class Good:
    """One right value for every name of a parameter."""

    def __init__(self, folder: Path):
        x = jnp.linspace(-1.0, 1.0, 24).reshape(3, 8)
        params = {"a": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8), "b": jnp.linspace(-2.0, 1.0, 32).reshape(8, 4)}
        plan = lb.bind(model, {"**": "w8,a8"}, params, x)
        qstate = lb.init(model, plan, params, x)
        qparams = lb.pack(plan, params, qstate)
        lb.save(folder / "m", plan, qparams)
        self.x = x
        self.values: dict[str, Any] = {
            "fn": model, "plan": plan, "params": params, "qstate": qstate, "qparams": qparams, "rules": {"**": "w8,a8"},
            "args": (x,), "batches": [(x,)], "path": folder / "m", "tree": params, "text": "w4,a4", "how": "int4/g2",
            "choose": lambda row: None, "wanted": {"**": {"input": (ChannelMax(),)}},
            "scores": Scores(("a", "b"), ("w4", "w8"), ((2.0, 1.0),) * 2), "budget": lb.budget(bits=20.0),
            "candidates": ("w4", "w8"),
        }  # fmt: skip
        self.module = nn.Dense(4)
        self.variables = self.module.init(jax.random.key(0), x)
        self.nnx_module = nnx.Linear(8, 4, rngs=nnx.Rngs(0))


def calls(good: Good) -> dict[str, Call]:
    """A right call of every public function."""
    special = {
        "linen": {"module": good.module, "variables": good.variables},
        "nnx": {"module": good.nnx_module},
        "quantize_array": {"x": good.x, "how": "int4/g2"},
        "export": {"path": good.values["path"].parent / "bundle"},
        "chain": {},
        "sensitivity": {"method": "mse"},
    }
    found = {}
    for name, thing in vars(lb).items():
        if name.startswith("_") or not inspect.isfunction(inspect.unwrap(thing) if callable(thing) else thing):
            continue
        parameters = inspect.signature(thing).parameters
        given = {n: good.values[n] for n, p in parameters.items() if n in good.values and p.default is p.empty}
        given |= special.get(name, {})
        given = {n: v for n, v in given.items() if parameters[n].kind is not inspect.Parameter.VAR_POSITIONAL}
        found[name] = Call(name, thing, given, (good.x,))
    for name in ("simulate", "execute"):  # what they return is called, too
        run = getattr(lb, name)(model, good.values["plan"])
        names = ("params", "qstate") if name == "simulate" else ("qparams",)
        found[f"{name}()"] = Call(f"{name}()", run, {n: good.values[n] for n in names}, (good.x,))
    return found


def without(tree: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name != key}


def wrong(call: Call, name: str, parameter: inspect.Parameter, good: Good) -> Iterator[tuple[str, Any]]:
    """Values that a parameter must refuse."""
    values, default = good.values, parameter.default
    if isinstance(default, bool):
        yield from (("text", "yes"), ("a number", 1), ("None", None), ("a list", []))
        return
    if name in ("key", "progress", "kwargs", "constant_args", "method", "targets", "vectors"):
        yield "an object", object()
        yield "a number", 3.5
        if name != "method":
            yield "text", "yes"
        return
    if name in ("rounding", "implementation", "custom_vjp", "version", "name", "start", "range", "axis"):
        yield "an object", object()
        yield "a fraction", 1.5
        if name not in ("range", "axis", "name"):
            yield "another word", "odd"
        return
    if name == "text" and default is None:
        yield "text", "yes"
        return
    if name == "mutable":
        yield from (("text", "batch_stats"), ("None", None), ("numbers", (1,)))
        return
    if name not in call.given and name != "args":
        return
    if name != "args":
        yield from (("None", None), ("an object", object()))
    if name not in ("path", "how", "text", "args"):
        yield "text", "yes"
    if name not in ("tree", "x", "args"):
        yield "a number", 3
    ours = ("fn", "plan", "params", "qstate", "qparams", "batches", "rules")
    if name in (*ours, "path", "how", "text", "x", "module", "variables", "wanted"):
        for other in ours:
            is_legal = name == "x" or (
                name == "params" and call.name in BINDS
            )  # a nested list; what the model makes of it
            if other != name and not (other == "batches" and is_legal):
                yield f"the {other}", values[other]
    if name == "params":
        if call.name not in BINDS:
            yield "one that lacks a leaf", without(values["params"], "b")
        yield "one with text in it", {**values["params"], "b": "text"}
        yield "packed ones", values["qparams"].params
    if name == "qstate":
        yield "one that lacks a part", without(values["qstate"], "fixed")
    if name == "batches":
        yield from (
            ("none", []),
            ("an array", good.x),
            ("arrays", [good.x]),
            ("empty tuples", [()]),
            ("no rows", [(good.x[:0],)]),
        )
    if name == "args":
        yield from (("too few", ()), ("too many", (good.x, good.x)))
    if name == "wanted":
        yield from (("statistics alone", {"**": (ChannelMax(),)}), ("no statistic", {"**": {"input": (3,)}}))
        yield from (
            ("an odd glob", {"zz": {"input": (ChannelMax(),)}}),
            ("an odd role", {"**": {"bias": (ChannelMax(),)}}),
        )
    if name == "rules":
        yield from (("numbers", {"**": 4}), ("an odd text", {"**": "q4"}), ("one that matches nothing", {"zz/*": "w4"}))


BINDS = ("bind", "rebind")  # what is missing in a tree is for the model to say

NAMES = {"args": "args|arguments", "batches": "batch", "rules": "rule", "qparams": "qparams|packed", "qstate": "state", "how": "how|rule text",
         "variables": "variables", "text": "text", "x": r"\bx\b|array"}  # fmt: skip


def found_wrong(good: Good) -> tuple[int, str]:
    """How many wrong calls were made, and those that were not answered as they should be."""
    made = []
    for call in calls(good).values():
        for name, parameter in inspect.signature(call.function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD or (
                name == "args" and call.name in ("explain", "bind", "chain", "pack")
            ):
                continue
            made += [Wrong(call, name, what, value) for what, value in wrong(call, name, parameter, good)]
    return len(made), answers(made, PACKAGE, NAMES)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        good = Good(Path(folder))
        right_calls(good)
        tried, text = found_wrong(good)
        print(f"{tried} wrong calls\n{text}")
        sys.exit(bool(text) or tried < 400)


def test_every_wrong_call_is_answered():
    """In a process of its own, as users have it: in this one, annotations are checked as well (tests/conftest.py)."""
    code = "from tests.api.test_wrong_calls import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def right_calls(good: Good) -> None:
    """Makes every call as it should be: otherwise any answer would do."""
    for call in calls(good).values():
        if call.name not in ("chain", "budget"):
            name = next(iter(call.given))
            call.made(name, call.given[name])
