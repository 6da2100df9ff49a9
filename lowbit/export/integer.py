"""Full-integer export: codes in and out, and the audit that no float is left.

With float arguments and results, the only float arithmetic of the module is inside the functions of two composites,
``lowbit.quantize`` at the entry and ``lowbit.dequantize`` at the exit. With ``integer_io`` there is none.

A deep network amplifies: where one value falls on the other side of the middle between two codes, later layers carry the
step on. How far that goes is a property of the network, so it is measured, with the plan's integers under another rounding.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lowbit.interpret.execute import execution
from lowbit.interpret.integer.compute import code_dtype
from lowbit.interpret.integer.ends import quantized
from lowbit.interpret.integer.interpretations import boundary, specs_of
from lowbit.interpret.trace import Model, trace_planned
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan

from . import stablehlo
from .signature import Call


class Boundary:
    """The grids of a full-integer model's arguments and results.

    Args:
        fn: the function.
        plan: its plan.
        qparams: its packed parameters.
        call: the exported call.
    """

    def __init__(self, fn: Model, plan: Plan, qparams: QParams, call: Call):
        self.fn, self.plan, self.qparams, self.call = fn, plan, qparams, call
        traced = trace_planned(fn, plan, qparams.params, call.arguments(call.leaves), call.kwargs)
        flat, self.outs = boundary(plan, traced)
        positions = [i for i, arg in enumerate(call.args) for _ in jax.tree.leaves(arg)]
        kept = [grid for i, grid in zip(positions, flat, strict=False) if i not in call.constant]
        self.ins = kept

    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Returns the module's inputs: int8 or int16 for arguments on a grid."""
        specs = specs_of(self.plan)
        return [
            jax.ShapeDtypeStruct(x.shape, code_dtype(specs[grid]) if grid else x.dtype)
            for x, grid in zip(self.call.leaves, self.ins, strict=True)
        ]

    def codes(self, leaves: Sequence[Any]) -> list[jax.Array]:
        """Returns arguments as codes."""
        specs = specs_of(self.plan)
        return [
            quantized(x, self.qparams.sites[grid], specs[grid]) if grid else x
            for x, grid in zip(leaves, self.ins, strict=True)
        ]

    def server(self, plan: Plan) -> Callable[[Sequence[Any]], Any]:
        """Returns the served model from argument codes to codes, compiled once; ``plan`` may have another rounding."""

        @jax.jit
        def run(qparams: QParams, codes: Any) -> Any:
            args = self.call.arguments(codes)
            return execution(self.fn, plan, qparams, args, self.call.kwargs, has_integer_io=True)

        return lambda codes: run(self.qparams, list(codes))

    def described(self, entries: list[dict[str, Any]], grids: Sequence[str]) -> list[dict[str, Any]]:
        """Returns signature entries with the scale and zero point of each."""
        sites = self.qparams.sites
        return [
            {**entry, "scale": float(sites[grid]["scale"]), "zero_point": int(sites[grid]["zero"])} if grid else entry
            for entry, grid in zip(entries, grids, strict=True)
        ]


def rounding_differences(run: Callable[[Plan], Sequence[Any]], plan: Plan, outputs: Sequence[Any]) -> dict[str, Any]:
    """Returns what rounding alone changes: the outputs under another named rounding of the same integers, compared.

    The other rounding is ``gemmlowp_double``, which differs most often from the rest, or ``exact`` for a plan that has
    ``gemmlowp_double`` itself.

    Args:
        run: gives the flat outputs of a plan for the test inputs.
        plan: a full-integer plan.
        outputs: what it gives.

    Returns:
        ``against``, the name of the other rounding, and per output, in its own unit, the ``largest`` difference and the
        root of the mean square, ``rms``.
    """
    against = "exact" if plan.rounding == "gemmlowp_double" else "gemmlowp_double"
    got = run(dataclasses.replace(plan, rounding=against))
    away = [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in zip(got, outputs, strict=True)]
    return {
        "against": against,
        "largest": [float(np.abs(x).max(initial=0.0)) for x in away],
        "rms": [float(np.sqrt(np.mean(x**2))) if x.size else 0.0 for x in away],
    }


def audit(code: Any, *, has_integer_io: bool) -> Mapping[str, list[str]]:
    """Returns the float operations of a full-integer module by composite: those of its entry and its exit.

    Args:
        code: StableHLO, text or a module.
        has_integer_io: whether there may be none.

    Raises:
        ValueError: for any other float operation.
    """
    floats = stablehlo.float_operations(code)
    allowed = () if has_integer_io else ("lowbit.quantize", "lowbit.dequantize")
    left = {where: names for where, names in floats.items() if where not in allowed}
    if left:
        listed = "; ".join(f"{', '.join(sorted(set(names)))} in {where}" for where, names in left.items())
        raise ValueError(f"this full-integer module still computes in floats: {listed}")
    return floats
