"""What runs along one axis, written as LiteRT has it: on images of height 1.

LiteRT convolves and pools images only. A convolution along one axis becomes one of images of height 1, and its result stays
such an image until something reads it that must not: the bias, the relu and the grid that follow are then next to the
convolution, where the converter looks for them, and every reshape is one of codes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowbit.export.composites import fake_quant_p
from lowbit.interpret.integer.nodes import TABULAR
from lowbit.program import compat
from lowbit.program.eqn import Eqn
from lowbit.program.read import Equation, Value

_ELEMENTWISE = TABULAR | {fake_quant_p.name}


@dataclasses.dataclass
class Image:
    """A value with one more axis.

    Attributes:
        value: the array.
        axis: of length 1, which the value does not have.
    """

    value: Any
    axis: int

    def plain(self) -> Any:
        """The value without the axis."""
        return jnp.squeeze(self.value, self.axis)


def as_image(x: Any, axis: int) -> Any:
    """Returns the array of an image that has its additional axis where it is wanted."""
    if isinstance(x, Image):
        if x.axis == axis:
            return x.value
        x = x.plain()
    return jnp.expand_dims(x, axis)


def convolved(eqn: Eqn, x: Any, kernel: Callable[[int], Any]) -> Image:
    """Returns the result of a convolution along one axis.

    Args:
        eqn: its equation.
        x: array or image.
        kernel: returns it with a further axis at a place.
    """
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    (axis,), (kernel_axis,), (out_axis,) = numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:]

    def spec(old: Sequence[int], at: int) -> tuple[int, ...]:
        moved = [i + (i >= at) for i in old]
        return (*moved[:2], at, moved[2])

    changes = {
        "dimension_numbers": lax.ConvDimensionNumbers(
            spec(numbers.lhs_spec, axis), spec(numbers.rhs_spec, kernel_axis), spec(numbers.out_spec, out_axis)
        ),
        "padding": ((0, 0), *params["padding"]),
        **{name: (1, *params[name]) for name in ("window_strides", "lhs_dilation", "rhs_dilation")},
    }
    (y,) = compat.rebind(eqn, [as_image(x, axis), kernel(kernel_axis)], **changes)
    return Image(y, out_axis)


def window_axis(eqn: Eqn) -> int | None:
    """Returns the axis of a batch of signals along which an equation has windows; None of any other equation."""
    if not eqn.primitive.name.startswith("reduce_window") or len(eqn.params.get("window_dimensions", ())) != 3:
        return None
    axes = [i for i in (1, 2) if eqn.params["window_dimensions"][i] != 1]
    return axes[0] if len(axes) == 1 else None


def window_params(eqn: Eqn, axis: int) -> dict[str, Any]:
    """Returns the parameters of an equation with windows, on images whose additional axis is at a place."""

    def wider(values: Sequence[Any], one: Any) -> tuple[Any, ...]:
        return (*values[:axis], one, *values[axis:])

    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    return {name: wider(eqn.params[name], 1) for name in names} | {"padding": wider(eqn.params["padding"], (0, 0))}


def carried(equation: Equation, values: Sequence[Any], env: Mapping[Value, Any]) -> list[Any] | None:
    """Returns the results of an equation on images, as images; None where it reads none, or needs the values themselves.

    Args:
        equation: the equation.
        values: what it reads.
        env: what values are, in this body.
    """
    image = next((v for v in values if isinstance(v, Image)), None)
    if image is None:
        return None
    eqn, name, params, axis = equation.eqn, equation.name, equation.params, image.axis

    def wider(numbers: Sequence[int], one: int) -> tuple[int, ...]:
        return (*numbers[:axis], one, *numbers[axis:])

    def moved(i: int) -> int:
        return i + (i >= axis)

    def operand(read: Value, value: Any) -> Any:
        if not isinstance(value, Image) and not jnp.ndim(value):
            return value
        spread = read.source
        if spread is None or spread.name != "broadcast_in_dim" or not isinstance(env.get(spread.ins[0]), jax.Array):
            return as_image(value, axis)
        shape, dims = spread.params["shape"], spread.params["broadcast_dimensions"]
        changes = {"shape": wider(shape, 1), "broadcast_dimensions": tuple(map(moved, dims))}
        return compat.rebind(spread.eqn, [env[spread.ins[0]]], **changes)[0]

    changes: dict[str, Any]
    if name in _ELEMENTWISE:
        along = params.get("axis")
        changes = {} if along is None else {"axis": moved(along)}
    elif name == "concatenate":
        changes = {"dimension": moved(params["dimension"])}
    elif name == "pad":
        low = tuple(params["padding_config"])
        changes = {"padding_config": (*low[:axis], (0, 0, 0), *low[axis:])}
    elif name == "slice":
        changes = {
            "start_indices": wider(params["start_indices"], 0),
            "limit_indices": wider(params["limit_indices"], 1),
        }
        changes["strides"] = None if params["strides"] is None else wider(params["strides"], 1)
    elif name == "reshape" and params["dimensions"] is None:
        return compat.rebind(eqn, [image.value])
    else:
        return None
    operands = [operand(read, v) for read, v in zip(equation.ins, values, strict=True)]
    return [Image(y, axis) for y in compat.rebind(eqn, operands, **changes)]
