"""Packed weights in the physical order of the kernels, prepared once.

`prepare` is pure and changes no number. `lowbit.execute` does the same by itself the first time it sees concrete packed
weights, and keeps the result as long as their arrays live.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

import lowbit_kernels
from lowbit.core.checks import is_traced
from lowbit.core.matrix import MatrixView
from lowbit.core.meshes import automatic
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Channel, Tensor
from lowbit.plan.rows import Plan, Row, Site
from lowbit_kernels.matrix import SCALE_DTYPES
from lowbit_kernels.pallas import gpu
from lowbit_kernels.platforms import platform_named, platform_of

from . import arguments
from .belongs import check_belongs
from .bits import unpack
from .pieces import layers_in_pieces, matrix_in_pieces
from .trees import QParams, flatten
from .views import group_of, levels_of, note_of

Axes = tuple[tuple[tuple[int, int], ...], ...]
"""Of every axis of a moved weight, the axes, and their lengths, of the weight as it was prepared."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Order:
    """A weight in the kernels' order, beside its packed form.

    Attributes:
        matrix: what `lowbit_kernels.prepare` made; of a dot with batch axes, one matrix for each, along a leading axis.
        contract: the axes that the kernel contracts, in its order, of the weight as prepared (of one layer).
        batch: the axes along which it has a matrix for each.
        axes: where the axes of the weight as prepared are now; none of an axis of length 1.
        view: its canonical matrix (`views.py`), for the machines that ``matrix`` is not for; or None.
        note: what to say of the view, or why there is none.
    """

    matrix: Any = None
    contract: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    batch: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    axes: Axes = dataclasses.field(default=(), metadata={"static": True})
    view: Any = None
    note: str = dataclasses.field(default="", metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NativeTensor(QTensor):
    """A packed `QTensor` that also holds its weight in the kernels' order: the fields of `Order`."""

    matrix: Any = None
    contract: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    batch: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    axes: Axes = dataclasses.field(default=(), metadata={"static": True})
    view: Any = None
    note: str = dataclasses.field(default="", metadata={"static": True})

    def without_matrix(self) -> QTensor:
        """Returns the same weight without its kernel's order."""
        return QTensor(**{f.name: getattr(self, f.name) for f in dataclasses.fields(QTensor)})

    def moved(self, weight: QTensor, axes: Axes | None) -> QTensor:
        """Returns the weight after a movement that permutes, merges or adds axes: the kernel's order stays what it is.

        Args:
            weight: the moved weight.
            axes: as the field; None, or where an axis was cut, only ``weight`` is left.
        """
        whole = sorted(atom for group in self.axes for atom in group)
        if axes is None or sorted(atom for group in axes for atom in group) != whole:
            return weight
        return _beside(weight, self, axes=axes)

    def layer(self, weight: QTensor, take: Callable[[Array], Array]) -> "NativeTensor":
        """Returns the weight after a movement along axes that count layers, in the kernels' order too.

        Args:
            weight: the moved weight.
            take: the same movement of any array with those axes in front.
        """
        return _beside(weight, self, **jax.tree.map(take, {"matrix": self.matrix, "view": self.view}))


def _beside(weight: QTensor, order: Order | NativeTensor, **changes: Any) -> NativeTensor:
    """A weight, and the fields of its order, some of them changed."""
    fields = {f.name: getattr(weight, f.name) for f in dataclasses.fields(QTensor)}
    return NativeTensor(**{**fields, **{f.name: getattr(order, f.name) for f in dataclasses.fields(Order)}, **changes})


def why_not(row: Row, site: Site) -> str | None:
    """Returns why an operation's weight cannot go to the native kernels, whatever its layout, or None if it can."""
    spec = site.spec
    if spec is None:
        return "not quantized"
    if (moved := _why_not_whole(row, site)) is not None:
        return moved
    if row.primitive == "conv_general_dilated":
        return _why_not_conv(row, site)
    if row.primitive != "dot_general":
        return f"no kernel for {row.primitive}"
    if spec.format.bits > 8 or not (spec.format.is_integer or spec.symmetric):
        return f"no packed matmul for {spec.text}"
    inputs = next((other.spec for other in row.sites if other is not site), None)
    if row.is_integer and inputs is not None and inputs.format.bits > 8:
        return f"no packed matmul for {inputs.format.name} inputs"
    if spec.granularity.kind == "tile":
        return "the packed matmul has no tiles"
    shape, stack = site.operand.shape, site.operand.stack
    if math.prod(shape) == 0:
        return "the weight has no elements"
    contract = tuple(i for i in site.operand.contract if shape[i] > 1)
    blocks = spec.granularity.blocks(site.operand)
    if any(1 < blocks[i] < shape[i] for i in range(stack, len(shape)) if i not in site.operand.contract):
        return "the packed matmul has no scales that some outputs share"
    group = group_of([shape[i] for i in contract], [blocks[i] for i in contract])
    if group is None:
        return f"scales of {spec.text} do not lie in groups of one size along the contracted axes {contract} of {shape[stack:]}"
    is_affine = not spec.symmetric
    whole = spec.merged
    group = group if whole == spec else math.prod(shape[i] for i in contract)
    if row.is_integer and group > (
        most := lowbit_kernels.largest_group(whole.format.bits, signed=whole.format.is_signed, affine=is_affine)
    ):
        return f"the kernel sums at most {most} products under one scale of {spec.text}, this one {group}"
    return None


MOVED = "the weight is cut, reversed or otherwise moved before use, out of the kernel's order"


def _why_not_whole(row: Row, site: Site) -> str | None:
    """Why what an operation takes of a leaf is never in the kernels' order, which is one of whole leaves; None where it may be."""
    atoms = [atom for axis in site.axes for atom in axis]
    if any(axis < 0 for axis, _ in atoms):
        return "data picks a part of the weight, and the kernel's order is one of whole weights"
    lengths = {i: math.prod(n for axis, n in atoms if axis == i) for i, _ in atoms}
    # Of axes that count layers an index or a scan takes one place: the order has a matrix for each.
    own = [i for i, n in enumerate(site.operand.shape) if n > 1 and (i >= site.operand.stack or i in lengths)]
    is_cut = bool(site.axes) and any(lengths.get(i, 1) != site.operand.shape[i] for i in own)
    return MOVED if is_cut or site.flipped else None


def _why_not_conv(row: Row, site: Site) -> str | None:
    spec, inputs, shape = site.spec, row.sites[0].spec, site.operand.shape
    assert spec is not None
    if len(shape) not in (3, 4) or site.operand.stack or row.sites[1] is not site:
        return "the convolution kernels take one weight of one or two dimensions on the right"
    if math.prod(shape) == 0:
        return "the weight has no elements"
    if inputs is None:
        return None  # a float convolution: the weight is dequantized once
    if _kernel_order(site) is None:
        return "the weight is neither HWIO nor OIHW"
    if not spec.format.is_integer or spec.format.bits > 8 or not spec.symmetric or spec.scale.name != "float32":
        return f"the convolution kernels take symmetric integers with float32 scales, not {spec.text}"
    if not isinstance(spec.granularity, Channel | Tensor):
        return "the convolution kernels take one scale per output channel"
    if not inputs.format.is_integer or inputs.format.bits > 8:
        return "the convolution kernels take integer inputs of 8 bits or less"
    return None


def _kernel_order(site: Site) -> tuple[int, ...] | None:
    """Of a convolution's weight, HWIO or OIHW: its axes as spatial ones, inputs, outputs; None of another.

    Also of one depthwise, HWCM with a multiplier M of 1. Axes before the last are contracted, or have length 1: a multiplier
    of more merges two axes into the outputs.
    """
    shape, rank = site.operand.shape, len(site.operand.shape)
    orders = (*range(rank),), (*range(2, rank), 1, 0), (*range(rank - 2), rank - 1, rank - 2)
    alone = {i for i in range(rank) if i not in site.operand.contract}
    wide = {i for i in alone if shape[i] > 1}
    fits = [order for order in orders if order[-1] in alone and wide <= {order[-1]}]
    return max(fits, key=lambda order: shape[order[-1]], default=None)


def conv_of(q: QTensor, feature_groups: int, order: tuple[int, ...]) -> Any:
    """Returns a packed weight in the convolution kernel's order.

    Args:
        q: packed.
        feature_groups: of the convolution.
        order: its axes as spatial ones, inputs, outputs.
    """
    out, spec = q.shape[order[-1]], q.spec
    scales = q.scale_values.reshape(-1)
    codes = jnp.transpose(unpack(q).codes, order)
    packed = lowbit_kernels.pack_conv(
        codes,
        jnp.broadcast_to(scales, (out,)),
        bits=spec.format.bits,
        signed=spec.format.is_signed,
        layout="HWIO" if len(order) == 4 else "WIO",
    )
    return lowbit_kernels.prepare_conv(packed, feature_group_count=feature_groups)


def matrix_of(q: QTensor, contract: tuple[int, ...], batch: tuple[int, ...], platform: str = "cpu") -> Any:
    """Returns a weight in the order of a platform's kernels, ``(K, N)``: K the contracted axes, N the free ones, both in the leaf's order.

    Args:
        q: packed, without stack axes; `why_not` has nothing against it.
        contract: the contracted axes.
        batch: the batch axes: where there are any, the result has a leading axis over all of them.
        platform: whose kernels.
    """
    factors = q.spec.scale.factors(q)
    if factors is not None and not (platform == "cpu" and q.spec.format.is_signed and 2 <= q.spec.format.bits <= 4):
        q, factors = q.merged(), None  # the CPU's kernels multiply integers of groups into signed codes of 2 to 4 bits
    blocks, view = q.blocks, MatrixView(tuple(q.shape), contract, batch)
    group = group_of([q.shape[i] for i in contract], [blocks[i] for i in contract])
    assert group is not None

    def tables(x: Array) -> Any:  # (batch, groups, N)
        wide = tuple(n if i in contract else q.shape[i] for i, n in enumerate(x.shape))
        return dataclasses.replace(view, shape=wide).matrices(jnp.broadcast_to(x, wide))

    # Scales in 8 bits, and quantized ones, are widened: a float per group, never per weight.
    is_plain = not isinstance(q.scale, QTensor) and q.scale.dtype.name in SCALE_DTYPES
    scales: Any = q.scale if is_plain else q.scale_values
    scales, factors = (scales, None) if factors is None else (factors[1], tables(factors[0]))

    def one(codes: Array, scales: Array, zeros: Array | None, factors: Array | None) -> Any:
        packed = lowbit_kernels.pack_matrix(
            codes,
            scales,
            bits=q.spec.format.bits,
            group=group,
            zeros=zeros,
            signed=q.spec.format.is_signed,
            codebook=None if q.spec.format.is_integer else levels_of(q.spec.format),
            factors=factors,
        )
        return in_order(packed, platform)

    codes: Any = view.matrices(unpack(q).codes)
    arrays = codes, tables(scales), None if q.zero is None else tables(q.zero), factors
    return jax.vmap(one)(*arrays) if batch else one(*jax.tree.map(lambda x: x[0], arrays))


def in_order(packed: lowbit_kernels.PackedMatrix, platform: str) -> Any:
    """Returns a canonical matrix in the order of a platform's kernels; as it is where they read that."""
    if platform == "cpu":
        return lowbit_kernels.prepare(packed)
    return gpu.prepare(packed) if platform == "cuda" and gpu.why_not_prepare(packed) is None else packed


def status() -> str | None:
    """Returns why the native kernels cannot run on a CPU, or None if they can."""
    return lowbit_kernels.status().reason or None


def prepare(plan: Plan, qparams: QParams, *, platform: str | None = None) -> QParams:
    """Returns ``qparams`` with every weight that a platform's kernels can take in their physical order as well. Pure.

    What it returns is a copy: replace an entry in ``qparams`` and prepare again, not in the result. Concrete arrays are
    prepared at once, also while another function is traced: that function holds them as constants.

    Args:
        plan: from `lowbit.bind`.
        qparams: from `lowbit.pack` or `lowbit.load`.
        platform: ``"cpu"``, ``"tpu"``, ``"cuda"`` or ``"rocm"``, whatever machine this is; None is where ``qparams`` are. A
            TPU reads most weights as they are packed: those stay as they are.

    Raises:
        TypeError: for other types.
        ValueError: if ``qparams`` are another plan's, for an unknown platform.
    """
    arguments.check(plan=plan, qparams=qparams)
    check_belongs(plan, qparams)
    platform = platform_of(qparams) if platform is None else platform_named(platform)
    weights = candidates(plan, qparams, platform)
    return attached(qparams, {key: order_of(*each, platform) for key, each in weights.items()})


def candidates(plan: Plan, qparams: QParams, platform: str = "cpu") -> dict[str, tuple[QTensor, Row, Site]]:
    """Returns the packed weights, by key, that a platform's kernels may take and that are not in their order yet."""
    rows, platform = rows_of(plan), platform.removesuffix("-interpreter")
    weights = {key: q for key, q in qparams.weights().items() if key in rows and not is_for(q, platform)}
    return {key: (q, *rows[key]) for key, q in weights.items() if _needs_order(q, *rows[key], platform)}


def _needs_order(q: QTensor, row: Row, site: Site, platform: str) -> bool:
    if platform == "cpu":
        return True
    if row.primitive != "dot_general":
        return False
    contract, batch, _ = axes_of(row, site)
    return platform == "cuda" or bool(note_of(q, contract, batch, site.operand.stack))


def is_for(weight: Any, platform: str) -> bool:
    """Returns whether a weight is in the order of a platform's kernels."""
    matrix = weight.matrix if isinstance(weight, NativeTensor) else None
    if platform == "cpu":
        return isinstance(matrix, lowbit_kernels.PreparedMatrix | lowbit_kernels.PreparedConv | jax.Array)
    return isinstance(matrix, lowbit_kernels.PackedMatrix) or (
        platform == "cuda" and isinstance(matrix, gpu.KMinorMatrix)
    )


@functools.lru_cache(maxsize=256)
def rows_of(plan: Plan) -> dict[str, tuple[Row, Site]]:
    """The first operation of every weight that the kernels may take: a shared one is put into the order of that."""
    rows: dict[str, tuple[Row, Site]] = {}
    for row in plan.rows:
        site = row.weight
        if site is not None and why_not(row, site) is None:
            rows.setdefault(site.key, (row, site))
    return rows


def axes_of(row: Row, site: Site) -> tuple[tuple[int, ...], tuple[int, ...], Axes]:
    """Returns an operation's contracted and batch axes of its weight, without layers, and the axes that it has."""
    stack, shape = site.operand.stack, site.operand.shape
    contract, batch = (
        tuple(i - stack for i in sorted(axes) if shape[i] > 1) for axes in (site.operand.contract, row.batch)
    )
    return contract, batch, tuple(((i, n),) if n != 1 else () for i, n in enumerate(shape[stack:]))


def order_of(q: QTensor, row: Row, site: Site, platform: str = "cpu") -> Order:
    """Returns a packed weight in the order of a platform's kernels; at once where it has values, also while a function is traced."""
    contract, batch, axes = axes_of(row, site)
    q = q.without_matrix() if isinstance(q, NativeTensor) else q
    is_waiting = any(is_traced(x) for x in jax.tree.leaves(q))
    with contextlib.nullcontext() if is_waiting else jax.ensure_compile_time_eval():
        if row.primitive == "conv_general_dilated":
            return _conv_order(q, row, site, axes)
        build = _builder(None, contract, batch, site.operand.stack, platform)
        return Order(automatic(build, q), contract, batch, axes)


def _conv_order(q: QTensor, row: Row, site: Site, axes: Axes) -> Order:
    """The weight of a convolution: its contraction is spatial axes, inputs and outputs; in float where its input is."""
    if row.sites[0].spec is None:
        return Order(automatic(_dequantized, q), (), (), axes)
    order = _kernel_order(site) or ()
    return Order(automatic(_builder(row.feature_groups, order, (), 0), q), order, (), axes)


@jax.jit
def _dequantized(q: QTensor) -> Array:
    return unpack(q).dequantize()


def attached(qparams: QParams, orders: Mapping[str, Order]) -> QParams:
    """Returns ``qparams`` with these forms of weights, by key, beside the packed ones."""
    paths, leaves, tree = flatten(qparams.params)

    def one(key: str, q: Any) -> Any:
        if key not in orders or not isinstance(q, QTensor):  # a weight computed from a leaf may be called as it
            return q
        return _beside(q, orders[key])

    params = jax.tree.unflatten(tree, [one(path, leaf) for path, leaf in zip(paths, leaves, strict=True)])
    sites = {
        path: {role: one(path, x) if isinstance(x, QTensor) else x for role, x in roles.items()}
        for path, roles in qparams.sites.items()
    }
    return dataclasses.replace(qparams, params=params, sites=sites)


@functools.lru_cache(maxsize=256)
def _builder(
    feature_groups: int | None, contract: tuple[int, ...], batch: tuple[int, ...], stack: int, platform: str = "cpu"
) -> Callable[[QTensor], Any]:
    """Returns the jitted preparation of one weight, of a convolution where groups are given: layers alike share a program."""

    def build(q: QTensor) -> Any:
        if feature_groups is not None:
            return conv_of(q, feature_groups, contract)
        return matrix_of(q, contract, batch, platform)

    for _ in range(stack):
        build = jax.vmap(build)
    jitted = jax.jit(build)
    if feature_groups is not None or platform != "cpu":
        return jitted
    return (
        functools.partial(layers_in_pieces, jitted)
        if stack
        else functools.partial(matrix_in_pieces, jitted, contract, batch)
    )
