"""The universal form as litert-converter takes it: scans written out, signals as images, some kernels as rounded floats.

A convolution with one input channel, or with groups, becomes a depthwise one, whose kernel the converter reshapes; it does
not fold ``quant.dequantize`` through that, and leaves a float convolution. Of a float kernel behind ``quant.fake_quant`` it
makes integers again, the same ones.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr

from lowbit.core.checks import is_traced
from lowbit.export.composites import Grid, dequantize, dequantize_p, fake_quant, fake_quant_p
from lowbit.program import compat
from lowbit.program.eqn import Eqn
from lowbit.program.evaluate import again, run, turns
from lowbit.program.read import Equation, Program, Value, read

from .affine import Affine, affine
from .images import Image, as_image, carried, convolved, window_axis, window_params

_UNROLLED = 64
"""Turns of a scan that are written out; a longer one is refused: the model would grow with every turn."""


@dataclasses.dataclass
class _Weight:
    """Integers that are dequantized where they are first used as they are."""

    codes: Any
    grid: Grid
    value: Any = None

    def plain(self) -> Any:
        if self.value is None:
            self.value = dequantize(jnp.asarray(self.codes), self.grid)
        return self.value

    def expanded(self, axis: int) -> "_Weight":
        along = self.grid.axis
        grid = dataclasses.replace(self.grid, axis=along if along is None or along < axis else along + 1)
        return _Weight(np.expand_dims(np.asarray(self.codes), axis), grid)

    def rounded(self) -> Any:
        codes = np.asarray(self.codes).astype(np.float32)
        shape = [1] * codes.ndim
        if self.grid.axis is not None:
            shape[self.grid.axis] = codes.shape[self.grid.axis]
        scale, zero = (np.asarray(x, np.float32).reshape(shape) for x in (self.grid.scale, self.grid.zero_point))
        return fake_quant(jnp.asarray((codes - zero) * scale), self.grid)


@dataclasses.dataclass
class _Window:
    """The sums over windows of an image, or what they become once they are divided by a number.

    LiteRT's average pool rounds to the grid of its input, then to its own: two steps off. With channels first, the converter
    makes one that is off by dozens. A depthwise convolution with ones rounds once.

    Attributes:
        eqn: the equation.
        params: its parameters, on images.
        x: the image.
        axis: the one that the value does not have, or None.
        spatial: the two axes of height and width.
    """

    eqn: Eqn
    params: Mapping[str, Any]
    x: Any
    axis: int | None
    spatial: tuple[int, int]
    value: Any = None

    @classmethod
    def of(cls, eqn: Eqn, x: Any) -> "_Window | None":
        """The sums that an equation makes of images or signals; None of any other equation."""
        axis = window_axis(eqn)
        params = {**eqn.params, **({} if axis is None else window_params(eqn, axis))}
        if eqn.primitive.name != "reduce_window_sum" or len(params["window_dimensions"]) != 4:
            return None
        if any(n != 1 for n in (*params["base_dilation"], *params["window_dilation"])):
            return None
        windows = tuple(zip(*(params[n] for n in ("window_dimensions", "window_strides", "padding")), strict=True))
        still = [i for i in range(4) if (windows[i][:2], tuple(windows[i][2])) == ((1, 1), (0, 0))]
        at = {1, 2} if 3 in still and axis != 2 else {2, 3}
        if any(i not in still for i in range(4) if i not in at):
            return None
        return cls(eqn, params, _plain(x) if axis is None else as_image(_known(x), axis), axis, (min(at), max(at)))

    def plain(self) -> Any:
        if self.value is None:
            (y,) = compat.rebind(self.eqn, [self.x], **self.params)
            self.value = y if self.axis is None else jnp.squeeze(y, self.axis)
        return self.value

    def averaged(self, divisor: float) -> Any:
        layout = "NHWC" if self.spatial == (1, 2) else "NCHW"
        channels = self.x.shape[layout.index("C")]
        lengths, strides, padding = (
            [self.params[name][i] for i in self.spatial] for name in ("window_dimensions", "window_strides", "padding")
        )
        grid = Grid("i8", (float(np.float32(1.0 / divisor)),), (0,))
        kernel = _Weight(np.ones((*lengths, 1, channels), np.int8), grid).rounded()
        y = lax.conv_general_dilated(
            self.x, kernel, strides, padding,
            dimension_numbers=(layout, "HWIO", layout), feature_group_count=channels,
        )  # fmt: skip
        return y if self.axis is None else Image(y, self.axis)


def _known(value: Any) -> Any:
    """An array, or an image as it is."""
    return value.plain() if isinstance(value, _Weight | _Window | Affine) else value


def _plain(value: Any) -> Any:
    return value.plain() if isinstance(value, _Weight | _Window | Affine | Image) else value


class Prepared:
    """The function of a universal jaxpr, to be traced for LiteRT.

    A softmax stays in float between its grids: LiteRT's integer softmax writes steps of 1/256 only, and the runtime refuses
    any other grid.

    Args:
        closed: from `lowbit.export.universal.universal_jaxpr`.
    """

    def __init__(self, closed: ClosedJaxpr):
        self.closed = closed
        self.found: dict[tuple[int, Grid], _Weight] = {}

    def __call__(self, *inputs: Any) -> list[Any]:
        """Returns the flat results.

        Raises:
            ValueError: for a scan that is too long to be written out.
        """
        self.found = {}
        return [_plain(v) for v in self.run(read(self.closed, inlined=("jit",)), inputs)]

    @property
    def weights(self) -> list[tuple[int, int]]:
        """Elements and bits of every constant behind a ``quant.dequantize``, once traced."""
        return [(int(np.size(w.codes)), w.grid.bits) for w in self.found.values()]

    def weight(self, codes: Any, grid: Grid) -> "_Weight":
        """One constant, however often it is read."""
        return self.found.setdefault((id(codes), grid), _Weight(codes, grid))

    def run(self, program: Program, args: Sequence[Any]) -> list[Any]:
        """Returns the results of a program; weights and sums over windows wait for what reads them."""
        env: dict[Value, Any] = dict(zip(program.inputs, args, strict=True))

        def made(equation: Equation, values: list[Any]) -> Sequence[Any]:
            outs = self.special(equation, values, env)
            return again(equation, [_plain(v) for v in values]) if outs is None else outs

        return run(program, env, {"scan": self.unrolled}, made)

    def special(self, equation: Equation, values: Sequence[Any], env: Mapping[Value, Any]) -> list[Any] | None:
        """Returns the results of an equation that LiteRT gets in another form; None of any other."""
        eqn, name = equation.eqn, equation.name
        if eqn.primitive is dequantize_p and not is_traced(values[0]):
            return [self.weight(values[0], Grid(**eqn.params))]
        if eqn.primitive is fake_quant_p and isinstance(values[0], Affine) and eqn.params["axis"] is None:
            return [values[0].quantized(Grid(**eqn.params))]
        if name == "conv_general_dilated":
            if len(eqn.params["window_strides"]) == 1:
                return [convolved(eqn, _known(values[0]), functools.partial(_wider_kernel, eqn, values[1]))]
            if _is_reshaped_kernel(eqn) and isinstance(values[1], _Weight):
                return compat.rebind(eqn, [_plain(values[0]), values[1].rounded()])
        if (window := _Window.of(eqn, values[0]) if values else None) is not None:
            return [window]
        if (axis := window_axis(eqn)) is not None:
            x = as_image(_known(values[0]), axis)
            return [Image(y, axis) for y in compat.rebind(eqn, [x], **window_params(eqn, axis))]
        if name == "div" and isinstance(values[0], _Window) and _is_number(equation.ins[1]):
            return [values[0].averaged(float(values[1]))]
        if name == "div" and (maker := equation.ins[0].source) is not None and maker.name == "exp":
            return [_plain(values[0]) * (1.0 / _plain(values[1]))]
        written = functools.partial(_written, eqn, values)
        if (replaced := affine(equation, list(values), env, written)) is not None:
            return [replaced]
        return carried(equation, [_known(v) for v in values], env)

    def unrolled(self, equation: Equation, values: Sequence[Any]) -> list[Any]:
        """Returns the results of a scan, its turns written out."""
        loop = equation.loop
        assert loop is not None
        if loop.length > _UNROLLED:
            raise ValueError(
                f"the litert form writes scans out, up to {_UNROLLED} turns; {equation.source or 'this one'} has "
                f"{loop.length}: export one step of it"
            )

        def part(x: Any, i: int) -> Any:
            return lax.index_in_dim(_plain(x), i, keepdims=False)

        return turns(equation, values, self.run, part, lambda parts: jnp.stack([_plain(y) for y in parts]))


def _written(eqn: Eqn, values: Sequence[Any]) -> Any:
    return compat.rebind(eqn, [_plain(v) for v in values])[0]


def _is_number(value: Value) -> bool:
    return value.is_written and not value.shape


def _wider_kernel(eqn: Eqn, kernel: Any, axis: int) -> Any:
    """The kernel of a convolution along one axis, as one of images."""
    if not isinstance(kernel, _Weight):
        return jnp.expand_dims(_plain(kernel), axis)
    kernel = kernel.expanded(axis)
    return kernel.rounded() if _is_reshaped_kernel(eqn) else kernel.plain()


def _is_reshaped_kernel(eqn: Eqn) -> bool:
    if eqn.primitive.name != "conv_general_dilated":
        return False
    channels = eqn.invars[0].aval.shape[eqn.params["dimension_numbers"].lhs_spec[1]]
    return eqn.params["feature_group_count"] > 1 or channels == 1
