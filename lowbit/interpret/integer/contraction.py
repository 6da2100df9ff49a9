"""Dots and convolutions: with a weight or of two tensors, of 8 bits, of 16, or with groups along the contraction."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import rounded_product
from lowbit.core.spec import Spec
from lowbit.interpret.arithmetic import right_to_result
from lowbit.interpret.layout import reach_of_spec
from lowbit.interpret.matmul import Matmul
from lowbit.interpret.sums import contracted_size
from lowbit.program.read import Equation

from . import compute, grouped, long
from .absorb import channels
from .grouped import Grouped, multipliers
from .kind import Given, Taken
from .linear import Linear, rescaling
from .nodes import Node
from .placer import Placer


class Contraction(Linear):
    """A dot or a convolution.

    Attributes:
        primitive: of which.
    """

    primitive: ClassVar[str]

    def takes(self, equation: Equation, placer: Placer) -> bool:
        return equation.name == self.primitive

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        op = placer.operations[equation.address]
        ins = [placer.need(v, nodes, equation) for v in equation.ins if v.is_data]
        axes = channels(equation) if len(ins) == 1 else None
        placer.linear(self.name, equation, [equation], ins, nodes, op=op, axes=axes)

    def check_weight(self, node: Node, weight: QTensor, spec: Spec) -> None:
        if groups_of(node, weight, spec) is None:
            result_scale(node.equations[0], weight)

    def constants(self, given: Given) -> dict[str, Array]:
        weight = given.weight
        groups = None if weight is None else groups_of(given.node, weight, given.specs[0])
        if weight is None or groups is None:
            if given.bits <= 8:
                return super().constants(given)
            return given.bounds() | rescaling(given, self.step(given), limit=long.MOST / 2, is_long=True)
        by, largest = multipliers(groups, weight)
        step = rounded_product(largest, given.grids[0][0])
        return given.bounds() | rescaling(given, step, limit=long.MOST / 2, is_long=True) | {"groups": by}

    def step(self, given: Given) -> Array:
        scale = given.grids[0][0]
        if given.weight is None:
            return rounded_product(scale, given.grids[1][0])
        return rounded_product(result_scale(given.node.equations[0], given.weight), scale)

    def reach(self, given: Given) -> float:
        equation = given.node.equations[0]
        count = contracted_size(Matmul.of(equation.eqn), *equation.ins)
        other = given.specs[1] if given.weight is None else given.weight.spec
        return reach_of_spec(given.specs[0]) * reach_of_spec(other) * count

    def accumulate(self, taken: Taken) -> Int32[Array, "..."]:
        return compute.multiply_pair(taken.node.equations[0], *operands(taken), carried=taken.carried)

    def compute(self, taken: Taken) -> list[Any]:
        equation, c = taken.node.equations[0], taken.c
        if "groups" in c:
            both = operands(taken)
            assert taken.weight is not None
            groups = groups_of(taken.node, taken.weight, taken.specs[0])
            assert groups is not None
            acc = grouped.multiply_groups(groups, *both, c, carried=taken.carried)
        elif taken.bits > 8:
            acc = long.multiply_long(equation, *operands(taken), carried=taken.carried)
        else:
            return super().compute(taken)
        return [long.linear(acc, c, taken.rounding, taken.dtype)]


def operands(taken: Taken) -> tuple[list[Any], list[Any], list[Any]]:
    """Returns the codes, zero points and reaches of both operands of a dot or convolution."""
    codes, zeros = list(taken.codes), list(taken.zeros)
    reaches = [reach_of_spec(spec) for spec in taken.specs]
    if len(codes) == 1:
        at, weight = 0 if taken.node.equations[0].ins[1].is_data else 1, taken.weight
        assert weight is not None
        codes.insert(at, weight.codes)
        zeros.insert(at, _nothing() if weight.zero is None else weight.zero.astype(jnp.int32))
        reaches.insert(at, reach_of_spec(weight.spec))
    return codes, zeros, reaches


def _nothing() -> Array:
    """A zero point that is known to be 0 while a program is traced: a convolution then needs no sums of its windows."""
    with jax.ensure_compile_time_eval():
        return jnp.int32(0)


def groups_of(node: Node, weight: QTensor, spec: Spec) -> Grouped | None:
    """Returns how the weight of a dot is cut into groups, or None where it is not.

    Args:
        node: the dot or convolution.
        weight: as it takes it.
        spec: of its input.

    Raises:
        ValueError: as `lowbit.interpret.integer.grouped.grouped`.
    """
    return grouped.grouped(node.equations[0], weight, reach_of_spec(spec), spec.format.bits)


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
            return (compute.left_to_result if index == 0 else right_to_result)(numbers, shaped, rank)
    elif index == 1 and not weight.groups and all(scale.shape[i] == 1 for i in numbers.rhs_spec[1:]):
        shape = [1] * rank
        shape[numbers.out_spec[1]] = scale.shape[numbers.rhs_spec[0]]
        return scale.reshape(shape)
    raise ValueError(
        f"integer=True ({equation.source}): a weight's scale may differ between output channels only, got the scale "
        f"{tuple(scale.shape)} of {weight.shape}; use w<bits>/channel or w<bits>/tensor"
    )
