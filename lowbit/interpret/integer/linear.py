"""Kinds that end in an int32 accumulator: it absorbs factors, a bias and clips, and is cut to codes once."""

import abc
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int32

from lowbit.core.rounding import nearest_even, rounded_product, unfused
from lowbit.program.read import Equation

from . import compute
from .fixed import fixed_points
from .kind import Given, Kind, Taken
from .nodes import Details, Node
from .placer import Placer

_MOST_BIAS = 2.0**30


class Linear(Kind):
    """A kind whose result is a sum, rescaled per channel to the grid of the result."""

    @abc.abstractmethod
    def step(self, given: Given) -> Array:
        """Returns the value of one step of the accumulator, float32, shaped to broadcast to it."""

    @abc.abstractmethod
    def reach(self, given: Given) -> float:
        """Returns the largest magnitude of the accumulator."""

    @abc.abstractmethod
    def accumulate(self, taken: Taken) -> Int32[Array, "..."]:
        """Returns the accumulator."""

    def constants(self, given: Given) -> dict[str, Array]:
        limit = min(_MOST_BIAS, 0.99 * (2.0**31 - self.reach(given)))
        return given.bounds() | rescaling(given, self.step(given), limit=limit)

    def compute(self, taken: Taken) -> list[Any]:
        return [compute.linear(self.accumulate(taken), taken.c, taken.rounding, taken.dtype)]


class Template(Linear):
    """A linear kind that is matched with a template (`lowbit.interpret.integer.templates`)."""

    @abc.abstractmethod
    def detailed(self, equation: Equation, placer: Placer) -> Details:
        """Returns what the kind knows of the node that ends in an equation."""

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        template = placer.templates[equation]
        for movement in template.before:
            placer.order.setdefault(movement, placer.order[equation])
            placer.place(movement, nodes)
        ins = [placer.need(template.x, nodes, equation)]
        if template.kept is not None and template.kept.is_data:
            ins += [template.kept, *template.integers]
        chain = [] if template.gain is None else [template.gain]
        details = self.detailed(equation, placer)
        placer.linear(self.name, equation, list(template.equations), ins, nodes, chain=chain, details=details)


def rescaling(given: Given, step: Array, *, limit: float, is_long: bool = False) -> dict[str, Array]:
    """Returns what brings an accumulator to the grid of the result: ``multiplier``, ``shift``, ``bias``, ``offset``.

    Args:
        given: the node.
        step: the value of one step of its accumulator.
        limit: of the bias, in steps; what is larger becomes an offset.
        is_long: whether the accumulator is long: the bias then has a ``bias_high`` beside it.
    """
    gain, shift = absorbed(given)
    step = rounded_product(step, gain)
    q, right = fixed_points(rounded_product(step, given.inverse))
    inverse = 1.0 / jnp.where(step == 0, 1.0, step)
    wanted = nearest_even(rounded_product(shift, inverse))
    fits = (jnp.abs(wanted) <= limit) & (step != 0)
    bias = jnp.where(fits, wanted, 0.0)
    beyond = jnp.clip(nearest_even(rounded_product(shift, given.inverse)), -(2.0**20), 2.0**20)
    rest = jnp.where(fits, 0.0, jnp.broadcast_to(beyond, fits.shape))
    offset = given.zero.astype(jnp.int32) + rest.astype(jnp.int32)
    integers = {"multiplier": q, "shift": right, "offset": offset}
    if not is_long:
        return integers | {"bias": bias.astype(jnp.int32)}
    high = jnp.floor(bias * 2.0**-8)
    return integers | {"bias_high": high.astype(jnp.int32), "bias": (bias - high * 2.0**8).astype(jnp.int32)}


def absorbed(given: Given) -> tuple[Array, Array]:
    """Returns the factor and the addend of the equations that a node absorbs."""
    gain, shift = jnp.float32(1.0), jnp.float32(0.0)
    for equation, var in given.node.chain:
        c = jnp.float32(1.0) if var.is_data else given.known.small(var).astype(jnp.float32)  # a negation has none
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
