"""Packed weights in the physical order of the kernels, prepared once; the only other import of `lowbit_kernels`.

`prepare` is pure and changes no number. `lowbit.execute` calls it by itself the first time it sees concrete packed
parameters, and keeps the result as long as they live.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

import lowbit_kernels
from lowbit.core.checks import is_traced
from lowbit.core.paths import leaf_path
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Channel, Format, Tensor
from lowbit.plan.rows import Plan, Row, Site
from lowbit_kernels.cpu.prepare import CHANNELS

from . import arguments
from .bits import unpack
from .pieces import count_of, joined
from .trees import QParams

Matrix = Any
T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NativeTensor(QTensor):
    """A packed `QTensor` that also holds its weight in the kernels' order.

    Attributes:
        matrix: what `lowbit_kernels.prepare` made.
    """

    matrix: Any = None


def why_not(row: Row, site: Site) -> str | None:
    """Returns why an operation's weight cannot go to the packed matmul kernels, or None if it can."""
    spec = site.spec
    if spec is None:
        return "not quantized"
    if row.primitive == "conv_general_dilated":
        return _why_not_conv(row, site)
    if row.primitive != "dot_general":
        return f"no kernel for {row.primitive}"
    if row.sites[1] is not site:
        return "the weight is the left operand"
    if spec.format.bits > 8 or not (spec.format.is_integer or spec.symmetric):
        return f"no packed matmul for {spec.text}"
    inputs = row.sites[0].spec
    if row.is_integer and inputs is not None and inputs.format.bits > 8:
        return f"no packed matmul for {inputs.format.name} inputs"
    if spec.granularity.text.startswith("t") and spec.granularity.text != "tensor":
        return "the packed matmul has no tiles"
    contract = tuple(i - site.operand.stack for i in site.operand.contract)
    rank = len(site.operand.shape) - site.operand.stack
    if contract not in (tuple(range(len(contract))), tuple(range(rank - len(contract), rank))):
        return "the contracted axes are not first or last"
    return None


def _why_not_conv(row: Row, site: Site) -> str | None:
    spec, inputs, shape = site.spec, row.sites[0].spec, site.operand.shape
    assert spec is not None
    if len(shape) != 4 or site.operand.stack or row.sites[1] is not site:
        return "the convolution kernels take one HWIO weight on the right"
    if not set(site.operand.contract) <= {0, 1, 2}:
        return "the kernel is not HWIO"
    if not spec.format.is_integer or spec.format.bits > 8 or not spec.symmetric or spec.scale_dtype != "float32":
        return f"the convolution kernels take symmetric integers with float32 scales, not {spec.text}"
    if not isinstance(spec.granularity, Channel | Tensor):
        return "the convolution kernels take one scale per output channel"
    if inputs is None or inputs.dynamic or not inputs.format.is_integer or inputs.format.bits > 8:
        return "the convolution kernels take calibrated integer inputs of 8 bits or less"
    if row.feature_groups > 1 and (shape[2] != 1 or shape[3] != row.feature_groups or not spec.format.is_signed):
        return "grouped convolutions other than depthwise have no kernel"
    return None


def conv_of(q: QTensor, feature_groups: int) -> Any:
    """Returns a packed HWIO weight in the convolution kernel's order."""
    scales = jnp.broadcast_to(q.scale_values, (1, 1, 1, q.shape[3])).reshape(-1)
    spec = q.spec
    packed = lowbit_kernels.pack_conv(unpack(q).codes, scales, bits=spec.format.bits, signed=spec.format.is_signed)
    return lowbit_kernels.prepare_conv(packed, feature_group_count=feature_groups)


def matrix_of(q: QTensor, contract: tuple[int, ...]) -> Any:
    """Returns a packed weight as a `lowbit_kernels.PackedMatrix` ``(K, N)``, or None where its bytes do not line up.

    Args:
        q: packed, without stack axes.
        contract: the contracted axes: the first ones, or the last ones.
    """
    if q.packed_axis is None or len(contract) == 0:
        return None
    rank, shape = q.ndim, q.shape
    axis = q.packed_axis[0] + rank
    last = next((i for i in reversed(contract) if shape[i] > 1), contract[-1])
    length = math.prod(shape[i] for i in contract)
    whole = lowbit_kernels.packed_length(shape[last], q.spec.format.bits) * (length // shape[last])
    if axis != last or lowbit_kernels.packed_length(length, q.spec.format.bits) != whole:
        return None
    groups = dict(q.groups)
    scale = q.scale_values.shape
    group = groups.get(last - rank, length if all(scale[i] == 1 for i in contract) else 1)
    if any(a + rank != last for a in groups) or (
        group not in (1, length) and shape[last] % group and len(contract) > 1
    ):
        return None
    if group == 1:
        return None
    first = 0 in contract

    def flat(x: Array) -> Array:
        kept = [n if i in contract else shape[i] for i, n in enumerate(x.shape)]
        x = jnp.broadcast_to(x, kept)
        inner = math.prod(kept[i] for i in contract)
        return x.reshape(inner, -1) if first else x.reshape(-1, inner).T

    # Scales in 8 bits, and quantized ones, are widened: a float per group, never per weight.
    is_plain = q.spec.scale_dtype in ("float32", "bfloat16") and not isinstance(q.scale, QTensor)
    scales: Any = q.scale if is_plain else q.scale_values
    return lowbit_kernels.PackedMatrix(
        codes=flat(q.codes),
        scales=flat(scales),
        zeros=None if q.zero is None else flat(q.zero),
        codebook=None if q.spec.format.is_integer else levels_of(q.spec.format),
        bits=q.spec.format.bits,
        signed=q.spec.format.is_signed,
        length=length,
        group=min(group, length),
    )


def levels_of(form: Format) -> Array:
    """Returns the level of every code of a format, ``(2**bits,)`` float32: the kernels' table."""
    return form.decode(jnp.arange(1 << form.bits, dtype=jnp.uint8))


def status() -> str | None:
    """Returns why the native kernels cannot run here, or None if they can."""
    if jax.default_backend() != "cpu":
        return f"the native kernels run on the CPU, not on {jax.default_backend()}"
    return lowbit_kernels.status().reason or None


def prepare(plan: Plan, qparams: QParams) -> QParams:
    """Returns ``qparams`` with every weight that the kernels can take in their physical order as well. Pure.

    Args:
        plan: from `lowbit.bind`.
        qparams: from `lowbit.pack` or `lowbit.load`.
    """
    arguments.check(plan=plan, qparams=qparams)
    rows = {
        site.key: (row, site)
        for row in plan.rows
        for site in row.sites
        if site.is_weight and why_not(row, site) is None
    }

    def one(q: Any, key: str) -> Any:
        if not isinstance(q, QTensor) or isinstance(q, NativeTensor) or key not in rows:
            return q
        row, site = rows[key]
        groups = row.feature_groups if row.primitive == "conv_general_dilated" else None
        matrix = _builder(groups, site.operand.contract, site.operand.stack)(q)
        if matrix is None:
            return q
        fields = {f.name: getattr(q, f.name) for f in dataclasses.fields(QTensor)}
        return NativeTensor(**fields, matrix=matrix)

    def leaf(keys: Any, q: Any) -> Any:
        return one(q, leaf_path(keys))

    params = jax.tree_util.tree_map_with_path(leaf, qparams.params, is_leaf=lambda x: isinstance(x, QTensor))
    sites = {path: {role: one(q, path) for role, q in roles.items()} for path, roles in qparams.sites.items()}
    return QParams(params, sites)


@functools.lru_cache(maxsize=256)
def _builder(feature_groups: int | None, contract: tuple[int, ...], stack: int) -> Callable[[QTensor], Any]:
    """Returns the jitted preparation of one weight, of a convolution where groups are given: layers alike share a program."""

    def build(q: QTensor) -> Any:
        if feature_groups is not None:
            return conv_of(q, feature_groups)
        matrix = matrix_of(q, tuple(i - stack for i in contract))
        return None if matrix is None else lowbit_kernels.prepare(matrix)

    for _ in range(stack):
        build = jax.vmap(build)
    made = jax.jit(build)
    return made if feature_groups is not None or stack else functools.partial(_in_pieces, made, contract)


def _in_pieces(build: Callable[[QTensor], Any], contract: tuple[int, ...], q: QTensor) -> Any:
    """What ``build`` makes of a weight, of a large one a few of its output channels at a time: whole tiles of the kernels."""
    rank, shape = q.ndim, q.shape
    free = [i for i in range(rank) if i not in contract]
    count = count_of(math.prod(shape), shape[free[0]], CHANNELS) if len(free) == 1 and rank > 1 else 1
    if count == 1 or is_traced(q.codes) or q.packed_axis is None or q.packed_axis[0] + rank == free[0]:
        return build(q)
    along, size = free[0], shape[free[0]] // count

    def piece(i: int) -> Any:
        def part(x: Array) -> Array:
            is_whole = x.ndim != rank or x.shape[along] != shape[along]
            return x if is_whole else lax.slice_in_dim(x, i * size, (i + 1) * size, axis=along)

        return build(jax.tree.map(part, q))

    if isinstance(q.scale, QTensor) or not q.spec.format.is_integer or jax.eval_shape(build, q) is None:
        return build(q)
    return dataclasses.replace(joined(count, piece, 0), out=shape[along])


def matmul(dimension_numbers: Any, x: Array, weight: NativeTensor, site: Site, state: Any, dtype: Any) -> Array:
    """Returns a dot of float inputs with a native weight, as the kernels do it.

    Args:
        dimension_numbers: of the dot_general; the weight is the right operand, without batch axes.
        x: the left operand, float.
        weight: the right operand.
        site: the left operand's site: how it is quantized, if at all.
        state: its scale and zero point where static.
        dtype: of the result.
    """
    (lc, rc), _ = dimension_numbers
    pairs = sorted(zip(lc, rc, strict=True), key=lambda pair: pair[1])
    free = [i for i in range(x.ndim) if i not in lc]
    rows = jnp.transpose(x, [*free, *(a for a, _ in pairs)]).reshape(*(x.shape[i] for i in free), -1)
    out = lowbit_kernels.quant_matmul(
        rows, weight.matrix, activation=_activation(site, state), out_dtype=dtype, implementation="cpu"
    )
    columns = [n for i, n in enumerate(weight.shape) if i not in rc]
    return out.reshape(*(x.shape[i] for i in free), *columns)


def is_plain_conv(params: Any) -> bool:
    """Returns whether a convolution's parameters are those the kernel has: NHWC by HWIO, nothing dilated on the left."""
    numbers = params["dimension_numbers"]
    nhwc, hwio = (0, 3, 1, 2), (3, 2, 0, 1)
    return (
        (tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec)) == (nhwc, hwio, nhwc)
        and all(d == 1 for d in params["lhs_dilation"])
        and all(low >= 0 and high >= 0 for low, high in params["padding"])
        and params["batch_group_count"] == 1
    )


def conv(params: Any, x: Array, weight: NativeTensor, site: Site, state: Any, dtype: Any) -> Array:
    """Returns a convolution of float inputs with a native weight, as the kernels do it.

    Args:
        params: of the conv_general_dilated; `is_plain_conv` holds.
        x: NHWC, float.
        weight: HWIO.
        site: the input's site.
        state: its scale and zero point.
        dtype: of the result.
    """
    return lowbit_kernels.quant_conv(
        x,
        weight.matrix,
        activation=_activation(site, state),
        strides=tuple(params["window_strides"]),
        padding=tuple(params["padding"]),
        rhs_dilation=tuple(params["rhs_dilation"]),
        feature_group_count=params["feature_group_count"],
        out_dtype=dtype,
        implementation="cpu",
    )


def can_take_input(site: Site) -> bool:
    """Returns whether the kernels quantize this input themselves: float, static per tensor, or int8 per row."""
    spec = site.spec
    if spec is None:
        return True
    if not spec.dynamic:
        return spec.granularity.text == "tensor"
    return spec.format.name == "int8" and spec.symmetric and isinstance(spec.granularity, Channel)


def _activation(site: Site, state: Any) -> Any:
    spec = site.spec
    if spec is None:
        return None
    if spec.dynamic:
        return "int8"
    zero = state.get("zero")
    return lowbit_kernels.StaticActivation(
        scale=state["scale"].reshape(()),
        zero=jnp.zeros((), jnp.int32) if zero is None else zero.reshape(()).astype(jnp.int32),
        lo=int(spec.format.low),
        hi=int(spec.format.high),
    )
