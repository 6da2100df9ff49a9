"""What a checkpoint says of its arrays, checked against them: nothing that it says may be first missed when it is executed."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core import blocks as block_ops
from lowbit.core.qtensor import QTensor, static_groups
from lowbit.plan.rows import Plan
from lowbit_kernels import packed_length

from .trees import QParams


def check_tensor(q: QTensor, path: str) -> None:
    """Raises where the static fields of a quantized tensor do not describe its arrays.

    Raises:
        ValueError: naming the path, the field, what it says and what the arrays are.
    """

    def must(*, hold: bool, what: str) -> None:
        if not hold:
            raise ValueError(f"{path}: {what}")

    codes, numbers = q.codes, q.spec.format
    rank = codes.ndim
    must(hold=_is_float(q.dtype), what=f"dtype must be a float's name, got {q.dtype!r}")
    if q.stage == "packed":
        assert q.packed_axis is not None
        axis, length = q.packed_axis
        must(hold=-rank <= axis < 0, what=f"packed_axis must be an axis from the end of {codes.shape}, got {axis}")
        must(
            hold=numbers.bits <= 8 and codes.dtype == jnp.uint8, what=f"packed codes of {q.spec.text} are {codes.dtype}"
        )
        wanted = packed_length(length, numbers.bits) if 0 <= length < 1 << 60 else -1
        must(
            hold=codes.shape[axis] == wanted,
            what=f"packed_axis says {length} codes in {codes.shape[axis]} bytes of {numbers.bits} bits",
        )
    else:
        wanted = (
            jnp.float32
            if q.stage == "levels"
            else jax.eval_shape(numbers.encode, jax.ShapeDtypeStruct((), jnp.float32)).dtype
        )
        must(hold=codes.dtype == wanted, what=f"{q.stage} of {q.spec.text} must be {wanted}, got {codes.dtype}")
    shape = q.shape
    groups = dict(q.groups)
    must(hold=len(groups) == len(q.groups), what=f"groups name an axis twice: {q.groups}")
    for axis, size in q.groups:
        must(
            hold=-rank <= axis < 0 and 1 < size < shape[axis],
            what=f"groups must cut axes of {shape}, got {(axis, size)}",
        )
    _check_scale(q, path)
    scale = q.scale.shape
    must(hold=len(scale) == rank, what=f"the scale's shape {scale} has another rank than {shape}")
    for i, (n, s) in enumerate(zip(shape, scale, strict=True)):
        size = groups.get(i - rank)
        allowed = (1, n) if size is None else (math.ceil(n / size),)
        must(hold=s in allowed, what=f"the scale has {s} entries along axis {i} of {shape}, groups {q.groups}")
    if q.zero is not None:
        must(hold=not q.spec.symmetric or q.spec.scale.spec is None, what="a symmetric spec has a zero point")
        must(
            hold=jnp.issubdtype(q.zero.dtype, jnp.integer) or (q.stage == "levels" and q.zero.dtype == jnp.float32),
            what=f"zero points must be integers, got {q.zero.dtype}",
        )
        must(hold=q.zero.shape == scale, what=f"zero points of shape {q.zero.shape} for scales of shape {scale}")


def _check_scale(q: QTensor, path: str) -> None:
    if isinstance(q.scale, QTensor):
        if q.scale.spec != q.spec.scale.spec:
            raise ValueError(f"{path}: a scale of {q.scale.spec.text}, where {q.spec.text} has another")
        check_tensor(q.scale, f"{path}/scale")
        return
    wanted = q.spec.scale.dtype
    allowed = (wanted, "float32") if q.stage == "levels" else (wanted,)
    if not hasattr(q.scale, "dtype") or str(q.scale.dtype) not in allowed:
        raise ValueError(f"{path}: the scale of {q.spec.text} must be {wanted}, got {getattr(q.scale, 'dtype', None)}")


def _is_float(name: Any) -> bool:
    try:
        return isinstance(name, str) and jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:
        return False


def check_against(plan: Plan, qparams: QParams) -> None:
    """Raises where packed weights are not what the plan says of them.

    Raises:
        ValueError: naming the weight, what the plan says and what it is.
    """
    weights = qparams.weights()
    for row in plan.rows:
        for site in row.sites:
            q = weights.get(site.key if site.kind == "leaf" else row.path)
            if not site.is_weight or q is None:
                continue
            shape = site.operand.shape
            if site.spec != q.spec:
                said = "nothing" if site.spec is None else site.spec.text
                raise ValueError(f"{site.key}: the plan says {said}, the packed weight is {q.spec.text}")
            if tuple(shape) != tuple(q.shape):
                raise ValueError(f"{site.key}: the plan says {list(shape)}, the packed weight is {list(q.shape)}")
            blocks = q.spec.granularity.blocks(site.operand)
            scale = block_ops.scale_shape(shape, blocks)
            if q.groups != static_groups(tuple(shape), tuple(blocks)) or tuple(q.scale.shape) != tuple(scale):
                raise ValueError(
                    f"{site.key}: {q.spec.text} of {list(shape)} contracted along {site.operand.contract} has scales "
                    f"{list(scale)}, the packed weight has {list(q.scale.shape)}, groups {q.groups}"
                )
