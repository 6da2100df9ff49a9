"""The contract of every kind of integer computation that is found, over the nodes of one network that has them all.

What a kind computes from codes is its definition in float on what the codes stand for, rounded to the grid of the result once: half a step,
and what the kind itself says that it loses before.
"""

import dataclasses
import functools
import importlib
import pkgutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.interpret.integer import interpretations, ops, weights
from lowbit.interpret.integer.fixed import rounding_named
from lowbit.interpret.integer.flat import Constants
from lowbit.interpret.integer.kind import Movement
from lowbit.interpret.integer.nodes import Node
from lowbit.interpret.integer.ops.norm import Norm
from lowbit.interpret.integer.ops.sum import Sum
from lowbit.interpret.integer.ops.table import Table
from lowbit.interpret.integer.plans import program_for
from lowbit.interpret.integer.run import Arithmetic, defined, evaluate
from lowbit.interpret.state import get
from lowbit.interpret.trace import trace
from lowbit.interpret.walk import plain
from tests.values import normal

LOST = {"norm": 1.0, "softmax": 1.0}
"""Steps besides the half one: the quotients of both are rounded before the grid is."""


def network(p, x, ids):
    """Every kind, each on data that could show its zero point, sign or order lost."""
    x = x + p["rows"][ids]
    a, b = x @ p["a"] + p["bias"], x @ p["b"]
    y = jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b), a - b], -1)
    y = y + jax.lax.conv_general_dilated(y, p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    y = jnp.maximum(jnp.pad(y, ((0, 0), (1, 0), (0, 0))) * p["free"], p["least"])
    y = y * jnp.tanh(y[:, ::-1])
    centred = y - y.mean(-1, keepdims=True)
    y = centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)
    y = jnp.where(jnp.arange(9) > 2, y, -y)
    s = jax.nn.softmax(y, -1)
    c, _ = jax.lax.scan(lambda c, s: (jnp.tanh(c @ p["c"] + s), None), y[:, 0], jnp.swapaxes(y, 0, 1))
    return s.sum(1), c, y.sum(1)


@functools.cache
def arguments():
    shapes = {
        "rows": (7, 4),
        "a": (4, 3),
        "b": (4, 3),
        "bias": (3,),
        "k": (3, 9, 9),
        "c": (9, 9),
        "free": (9,),
        "least": (9,),
    }
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    return params, normal(9, 2, 5, 4) + 1.0, jnp.asarray([[0, 3, 6, 1, 2], [5, 4, 1, 0, 6]])


class Case(NamedTuple):
    node: Node
    codes: list[Any]
    arithmetic: Any
    made: Any
    wanted: Any


@functools.cache
def cases() -> dict[str, list[Case]]:
    """Nodes by kind: the codes of their operands, and of the result; what their definition says of those operands, in its steps."""
    params, *args = arguments()
    plan = lb.bind(network, {"**": "w8,a8"}, params, *args, integer=True)
    qstate = lb.calibrate(network, plan, params, [tuple(args)])
    nodes: list[Node] = []

    def walked(params, args):
        nodes.clear()
        traced = trace(network, params, args, {})
        program, specs = program_for(plan, traced), interpretations.specs_of(plan)
        known, quantized, _ = weights.weights_of(plan, program, traced, qstate, _forward)
        grids = {
            path: interpretations.grid_of(site, get(qstate, path, "output")) for path, site in plan.grids().items()
        }
        arithmetic = interpretations.exact_arithmetic(plan, program, traced, quantized, grids)
        env, seen = interpretations.data_of(program, traced), []

        def value(codes, var):
            scale, zero = grids[program.grids[var]]
            return (codes.astype(jnp.float32) - zero) * scale

        def at(node, values, state):
            path = program.grids[node.out]
            if node.kind == "input":
                return [interpretations.quantized(env[node.out], arithmetic.numbers[path], specs[path])], state
            out = arithmetic(node, values)
            if node in program.nodes:  # and in no loop
                real = [value(x, v) if v in program.grids else x for x, v in zip(values, node.ins, strict=True)]
                own = {weights.weight_of(node): plain(quantized[node.path])} if node.path in quantized else {}
                (y,) = defined(node, real, lambda v: own[v] if v in own else known.value(v))
                scale, zero = grids[path]
                nodes.append(node)
                seen.append(
                    (values, out[0], jnp.clip(y / scale + zero, specs[path].format.low, specs[path].format.high))
                )
            return out, state

        evaluate(program.nodes, env, at, (), known.value)
        return seen

    seen = jax.jit(walked)(params, args)
    traced = trace(network, params, args, {})
    program = program_for(plan, traced)
    qparams = lb.pack(plan, params, qstate)
    arithmetic = Arithmetic(
        program,
        interpretations.specs_of(plan),
        rounding_named(plan.rounding),
        qparams.sites,
        {},
        Constants({}),
        carried=True,
    )
    found: dict[str, list[Case]] = {}
    for node, case in zip(nodes, seen, strict=True):
        here = next(each for each, _ in program.everywhere() if each.path == node.path)
        found.setdefault(node.kind, []).append(Case(here, case[0], arithmetic, *map(np.asarray, case[1:])))
    return found


def _forward(site, state, x, operand):
    return interpretations.quantizer_of(site).quantize(state, x, operand)


def check(name: str, made: Any, case: Case) -> None:
    far = np.max(np.abs(np.asarray(made, np.float64) - case.wanted))
    assert far <= 0.51 + LOST.get(name, 0.0), (case.node.path, far)


COMPUTED = sorted(set(ops.kinds()) - {"input", "index", "scan"})


@pytest.mark.parametrize("name", COMPUTED)
def test_what_it_computes_is_its_definition(name: str) -> None:
    for case in cases()[name]:
        check(name, case.made, case)


def test_every_file_has_the_kind_of_its_name() -> None:
    files = [module.name for module in pkgutil.iter_modules(ops.__path__)]
    assert sorted(ops.kinds()) == sorted(files)
    assert all(importlib.import_module(f"{ops.__name__}.{name}").KIND is ops.kinds()[name] for name in files)
    with pytest.raises(ValueError, match="'sort' is unknown here; there are: add, affine"):
        ops.kind_named("sort")


class NoZero(Sum):
    """Sums codes as they are."""

    def accumulate(self, taken):
        return super().accumulate(dataclasses.replace(taken, zeros=[jnp.int32(0)]))


class NotCentred(Norm):
    """Leaves the mean in."""

    def accumulate(self, taken):
        details = dataclasses.replace(taken.node.details, is_centered=False)
        return super().accumulate(dataclasses.replace(taken, node=dataclasses.replace(taken.node, details=details)))


class NextEntry(Table):
    """Reads a table one entry further on."""

    def compute(self, taken):
        return super().compute(dataclasses.replace(taken, codes=[taken.codes[0] + 1]))


class Backwards(Movement):
    """Joins what it is given in the other order."""

    def moved(self, node, values, zero, get):
        return ops.kind_named("concatenate").moved(node, values[::-1], zero, get)


@pytest.mark.parametrize(
    ("name", "cls"), [("sum", NoZero), ("norm", NotCentred), ("table", NextEntry), ("concatenate", Backwards)]
)
def test_a_defect_is_found(name: str, cls: Any) -> None:
    def worst(kind):
        for case in cases()[name]:
            check(name, kind.compute(case.arithmetic.taken(case.node, case.codes))[0], case)

    worst(ops.kind_named(name))
    with pytest.raises(AssertionError):
        worst(cls())
