"""The integer constants of every node, from scales and parameters: multipliers, biases, bounds, tables.

Computed in float32 here, once, when the model is packed (and, for training, in every simulated step, by the same code).
Products that meet a sum are kept from being fused, so that the same numbers come out wherever this is compiled.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.powers import exponent, power_of_two
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import nearest_even, rounded_product, unfused
from lowbit.core.spec import Spec
from lowbit.interpret.arithmetic import Matmul, right_to_result
from lowbit.interpret.layout import reach_of_spec
from lowbit.interpret.sums import contracted_size
from lowbit.program import compat, primitives
from lowbit.program.read import Equation, Value

from . import long_rows
from .compute import AFFINE_BITS, NORM_BITS, SOFTMAX_BITS, left_to_result
from .fixed import fixed_points
from .flat import Constants
from .grouped import grouped, multipliers
from .long import BEND_BITS, MOST, PIECE_BITS, PIECES
from .long_rows import EXP_BITS
from .nodes import LINEAR, Node, Program

_MOST_BIAS = 2.0**30
_PAIR_BITS = 21

Grid = tuple[Float[Array, ""], Float[Array, ""]]
"""Scale and zero point of a grid."""


def constants(
    program: Program,
    specs: Mapping[str, Spec],
    known: Constants,
    weights: Mapping[str, QTensor],
    grids: Mapping[str, Grid],
) -> dict[str, dict[str, Array]]:
    """Returns the integer constants of every node by path, and under the path of every grid its scale and zero point.

    Args:
        program: the integer form.
        specs: by grid.
        known: the values of parameters and constants.
        weights: by operation: the quantized weight, as the operation takes it.
        grids: scale and zero point by grid.
    """
    found: dict[str, dict[str, Array]] = {}
    for path, (scale, zero) in grids.items():
        found[path] = {"scale": scale, "zero": zero.astype(jnp.int32)}
    for node, _ in program.everywhere():
        if node.kind in ("input", "index", "move", "concatenate", "select", "scan"):
            continue
        made = _Maker(program, specs, known, weights, grids, node)()
        found.setdefault(node.path, {}).update(made)
    return found


class _Maker:
    def __init__(self, program, specs, known, weights, grids, node: Node):
        self.program, self.specs, self.known, self.weights, self.node = program, specs, known, weights, node
        given = [program.grids[v] for v in node.ins if v in program.grids]  # indices have none
        self.ins, self.in_specs = [grids[path] for path in given], [specs[path] for path in given]
        self.scale, self.zero = grids[program.grids[node.out]]
        self.spec = specs[program.grids[node.out]]
        self.inverse = 1.0 / self.scale
        self.is_long = any(spec.format.bits > 8 for spec in self.in_specs)
        self.groups = None
        if node.kind in ("dot", "conv") and len(node.ins) == 1:
            given = self.in_specs[0]
            self.groups = grouped(node.equations[0], weights[node.path], reach_of_spec(given), given.format.bits)
        self.norm_bits = long_rows.NORM_BITS if self.is_long else NORM_BITS

    def __call__(self) -> dict[str, Array]:
        kind = self.node.kind
        if kind == "constant":
            return {"codes": self.codes(self.known.small(self.node.details["value"]).astype(jnp.float32))}
        if kind == "table" and not self.is_long:
            return {"table": self.table()}
        made = self.bounds()
        if kind == "table":
            return made | self.curve()
        if kind == "lookup":
            return made | self.rows()
        if kind in LINEAR:
            made |= self.linear()
        else:
            made |= self.pair()
        if kind == "softmax" and self.is_long:
            made |= {"coarse": self.exponentials(256, 256, EXP_BITS), "fine": self.exponentials(256, 1, EXP_BITS)}
        elif kind == "softmax":
            made["table"] = self.exponentials(2 ** self.in_specs[0].format.bits, 1, SOFTMAX_BITS)
        if kind == "norm":
            made |= self.epsilon()
        return made

    def codes(self, x: Array) -> Array:
        """Values on the node's grid."""
        low, high = self.spec.format.low, self.spec.format.high
        levels = jnp.clip(nearest_even(x * self.inverse) + self.zero, low, high)
        return self.spec.format.encode(levels)

    def bounds(self) -> dict[str, Array]:
        low = jnp.float32(self.spec.format.low)
        high = jnp.float32(self.spec.format.high)
        for which, var in self.node.clips:
            bound = self.known.small(var).astype(jnp.float32).reshape(())
            code = jnp.clip(nearest_even(bound * self.inverse) + self.zero, self.spec.format.low, self.spec.format.high)
            low, high = (jnp.maximum(low, code), high) if which == "low" else (low, jnp.minimum(high, code))
        return {"low": low.astype(jnp.int32), "high": high.astype(jnp.int32)}

    def linear(self) -> dict[str, Array]:
        gain, shift = self.affine()
        step = rounded_product(self.accumulator_scale(), gain)
        q, right = fixed_points(rounded_product(step, self.inverse))
        inverse = 1.0 / jnp.where(step == 0, 1.0, step)
        wanted = nearest_even(rounded_product(shift, inverse))
        is_long = self.groups is not None or (self.is_long and self.node.kind in ("dot", "conv"))
        limit = MOST / 2 if is_long else min(_MOST_BIAS, 0.99 * (2.0**31 - self.reach()))
        fits = (jnp.abs(wanted) <= limit) & (step != 0)
        bias = jnp.where(fits, wanted, 0.0)
        beyond = jnp.clip(nearest_even(rounded_product(shift, self.inverse)), -(2.0**20), 2.0**20)
        rest = jnp.where(fits, 0.0, jnp.broadcast_to(beyond, fits.shape))
        offset = self.zero.astype(jnp.int32) + rest.astype(jnp.int32)
        made = {"multiplier": q, "shift": right, "offset": offset}
        if self.groups is not None:
            made["groups"], _ = multipliers(self.groups, self.weights[self.node.path])
        if not is_long:
            return made | {"bias": bias.astype(jnp.int32)}
        high = jnp.floor(bias * 2.0**-8)
        return made | {"bias_high": high.astype(jnp.int32), "bias": (bias - high * 2.0**8).astype(jnp.int32)}

    def rows(self) -> dict[str, Array]:
        """From the steps of a weight, one or one per row, to those of the result."""
        q, right = fixed_points(rounded_product(self.weights[self.node.path].scale_values, self.inverse))
        return {"multiplier": q, "shift": right, "offset": self.zero.astype(jnp.int32)}

    def affine(self) -> tuple[Array, Array]:
        """The factor and the addend of the absorbed equations."""
        gain, shift = jnp.float32(1.0), jnp.float32(0.0)
        for equation, var in self.node.chain:
            c = jnp.float32(1.0) if var.is_data else self.known.small(var).astype(jnp.float32)  # a negation has none
            is_first = equation.ins[0].is_data
            if equation.name == "mul":
                gain, shift = rounded_product(gain, c), rounded_product(shift, c)
            elif equation.name == "div":
                inverse = 1.0 / c
                gain, shift = rounded_product(gain, inverse), rounded_product(shift, inverse)
            elif equation.name in ("add", "add_any"):
                shift = unfused(shift + c)
            elif equation.name == "sub":
                gain, shift = (gain, unfused(shift - c)) if is_first else (-gain, unfused(c - shift))
            elif equation.name == "neg":
                gain, shift = -gain, -shift
        return gain, shift

    def accumulator_scale(self) -> Array:
        kind, node = self.node.kind, self.node
        if kind in ("dot", "conv"):
            if len(node.ins) == 2:
                return rounded_product(self.ins[0][0], self.ins[1][0])
            if self.groups is not None:
                return rounded_product(multipliers(self.groups, self.weights[node.path])[1], self.ins[0][0])
            return rounded_product(result_scale(node.equations[0], self.weights[node.path]), self.ins[0][0])
        if kind == "product":
            return rounded_product(self.ins[0][0], self.ins[1][0])
        if kind == "softmax":
            return jnp.float32(2.0**-16)
        if kind == "norm":
            count = node.ins[0].shape[node.details["axis"]]
            return jnp.float32(np.float32(math.sqrt(count)) * np.float32(2.0**-self.norm_bits))
        return self.ins[0][0] * (2.0**-AFFINE_BITS if kind == "affine" else 1.0)

    def reach(self) -> float:
        """The largest magnitude of the accumulator."""
        kind, node = self.node.kind, self.node
        one = [reach_of_spec(spec) for spec in self.in_specs]
        if kind in ("dot", "conv"):
            operation = Matmul.of(node.equations[0].eqn)
            count = contracted_size(operation, *node.equations[0].ins)
            other = one[1] if len(one) == 2 else reach_of_spec(self.weights[node.path].spec)
            return one[0] * other * count
        if kind == "product":
            return one[0] * one[1]
        if kind == "sum":
            return one[0] * summed_count(node.equations[0])
        return {"affine": one[0] * 2.0**AFFINE_BITS, "softmax": 2.0**16, "norm": 2.0**self.norm_bits}[kind]

    def pair(self) -> dict[str, Array]:
        """Multipliers of two tensors by one power of two, so that the larger has 21 bits."""
        left, right = (rounded_product(scale, self.inverse) for scale, _ in self.ins)
        right = right * float(self.node.details["sign"])
        k = jnp.clip(_PAIR_BITS - 1 - exponent(jnp.maximum(left, jnp.abs(right))), 1, 30)
        most = 2.0**_PAIR_BITS
        q = [jnp.clip(nearest_even(m * power_of_two(k)), -most, most).astype(jnp.int32) for m in (left, right)]
        return {"left": q[0], "right": q[1], "shift": k, "offset": self.zero.astype(jnp.int32)}

    def table(self) -> Array:
        numbers, (scale, zero) = self.in_specs[0].format, self.ins[0]
        levels = jnp.arange(numbers.low, numbers.high + 1, dtype=jnp.float32)
        x = rounded_product(levels - zero, scale).astype(self.node.ins[0].dtype)
        return self.codes(tabulated(self.node, x, self.known).astype(jnp.float32))

    def curve(self) -> dict[str, Array]:
        """The codes at the ends of the pieces of a function of 16-bit codes, and how far its middles are from their lines."""
        half = 2.0 ** (PIECE_BITS - 1)
        codes = (jnp.arange(2 * PIECES + 1, dtype=jnp.float32) - PIECES) * half
        x = rounded_product(codes, self.ins[0][0]).astype(self.node.ins[0].dtype)
        y = tabulated(self.node, x, self.known).astype(jnp.float32)
        ends = self.codes(y[::2])
        low, high = self.spec.format.low, self.spec.format.high
        middles = jnp.clip(rounded_product(y[1::2], self.inverse) + self.zero, low, high)
        above = middles - 0.5 * (ends[1:].astype(jnp.float32) + ends[:-1].astype(jnp.float32))
        bends = jnp.clip(nearest_even(above * 2.0**BEND_BITS), -(2.0**15), 2.0**15 - 1)
        return {"ends": ends, "bends": bends.astype(jnp.int16)}

    def exponentials(self, count: int, every: int, bits: int) -> Array:
        """``exp(-x)`` at every so many codes from 0 on, as integers up to ``2**bits``."""
        steps = jnp.arange(count, dtype=jnp.float32) * every
        powers = jnp.exp(-rounded_product(steps, self.ins[0][0]))
        return nearest_even(powers * 2.0**bits).astype(jnp.int32)

    def epsilon(self) -> dict[str, Array]:
        node = self.node
        count = node.ins[0].shape[node.details["axis"]]
        factor = jnp.float32(float(count) ** (3 if node.details["is_centered"] else 1))
        inverse = 1.0 / self.ins[0][0]
        eps = self.known.small(node.details["epsilon"]).astype(jnp.float32).reshape(())
        value = rounded_product(rounded_product(rounded_product(eps, factor), inverse), inverse)
        bits = lax.bitcast_convert_type(value, jnp.int32)
        is_normal = value >= 2.0**-126
        mantissa = jnp.where(is_normal, (bits & 0x7FFFFF) | 0x800000, 0)
        return {"epsilon": mantissa, "epsilon_shift": jnp.where(is_normal, exponent(value) - 23, -100)}


def summed_count(equation: Equation) -> int:
    """Returns how many elements are added into one."""
    params = equation.eqn.params
    if equation.name == "reduce_sum":
        return math.prod(equation.ins[0].shape[i] for i in params["axes"])
    if equation.name == "cumsum":
        return equation.ins[0].shape[params["axis"]]
    return math.prod(params["window_dimensions"])


def result_scale(equation: Equation, weight: QTensor) -> Array:
    """Returns the weight's scale shaped to the result.

    Raises:
        ValueError: where it varies along the contraction.
    """
    params, scale = equation.eqn.params, weight.scale_values
    index = 0 if equation.ins[1].is_data else 1
    rank = len(equation.ins[1 - index].shape)
    numbers = params["dimension_numbers"]
    if equation.name == "dot_general":
        contracted = numbers[0][index]
        shaped = None if weight.groups or any(scale.shape[i] != 1 for i in contracted) else scale
        if shaped is not None:
            return (left_to_result if index == 0 else right_to_result)(numbers, shaped, rank)
    elif index == 1 and not weight.groups and all(scale.shape[i] == 1 for i in numbers.rhs_spec[1:]):
        shape = [1] * rank
        shape[numbers.out_spec[1]] = scale.shape[numbers.rhs_spec[0]]
        return scale.reshape(shape)
    raise ValueError(
        f"integer=True ({equation.source}): a weight's scale may differ between output channels only, got the scale "
        f"{tuple(scale.shape)} of {weight.shape}; use w<bits>/channel or w<bits>/tensor"
    )


def tabulated(node: Node, x: Array, known: Constants) -> Array:
    """Returns the function of a table at ``x``, one axis; products that meet a sum round on their own."""
    env: dict[Value, Any] = {node.ins[0]: x}
    summed = {v for e in node.equations if e.name in primitives.ADDITIONS for v in e.ins}

    def get(var: Value) -> Array:
        return env[var] if var in env else jnp.broadcast_to(known.small(var).reshape(()), x.shape)

    for equation in node.equations:
        (out,) = compat.rebind(equation.eqn, [get(v) for v in equation.ins])
        if equation.name == "mul" and equation.outs[0] in summed:
            out = unfused(out)
        env[equation.outs[0]] = out
    return env[node.out]
