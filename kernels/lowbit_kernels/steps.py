"""Operations that follow a product inside its call (`fused.py`): what they are, and one by one."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit_kernels import checks
from lowbit_kernels.cpu.tail import KINDS, MOST_STEPS, RESIDUAL, grouped
from lowbit_kernels.numerics import rounded_product

_ALL = (*KINDS, RESIDUAL)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """Operations on a float32 result, one number a channel each; made once by `prepare_steps`.

    Attributes:
        table: float32 `(rows, tiles, 16)`: each feature group's channels fill whole tiles. None without rows.
        kinds: of "add", "mul", "max", "min", "residual", in order.
        numbers: of each step its number where all channels have one that is known, else None: a row of the table.
        out: N, channels of the result.
        groups: feature groups, 1 for a matmul.
    """

    table: Any
    kinds: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    numbers: tuple[float | None, ...] = dataclasses.field(metadata={"static": True})
    out: int = dataclasses.field(metadata={"static": True})
    groups: int = dataclasses.field(metadata={"static": True})


def prepare_steps(steps: Sequence[tuple[str, Any]], out: int, *, feature_group_count: int = 1) -> Steps:
    """The steps of a result of `out` channels: pairs of a kind and a float32 number, or one number a channel. Pure.

    Raises:
        ValueError: an unknown kind, an operand that is neither a number nor `(out,)`, or more than 8 steps.
        TypeError: what is no sequence of pairs, no number, no array or no integer.

    >>> prepare_steps([("add", jnp.ones(5, jnp.float32)), ("max", 0.0)], 5).kinds
    ('add', 'max')
    """
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise TypeError(f"prepare_steps: steps must be pairs of a kind and an operand, got {checks.kind_of(steps)}")
    checks.integer("prepare_steps: out", out, 0)
    checks.integer("prepare_steps: feature_group_count", feature_group_count, 1)
    if len(steps) > MOST_STEPS:
        raise ValueError(f"prepare_steps: at most {MOST_STEPS} steps follow a product, got {len(steps)}")
    if out % feature_group_count:
        raise ValueError(
            f"prepare_steps: out = {out} channels do not divide into feature_group_count = {feature_group_count} groups"
        )
    operands, numbers = [], []
    for step in steps:
        if not isinstance(step, tuple | list) or len(step) != 2:
            raise TypeError(f"prepare_steps: each of steps must be a pair of a kind and an operand, got {step!r:.80}")
        kind, operand = step
        if not isinstance(kind, str) or kind not in _ALL:
            raise ValueError(f"prepare_steps: step {checks.kind_of(kind)} is unknown; the steps are {_ALL}")
        if kind == RESIDUAL:
            if operand is not None:
                raise ValueError("prepare_steps: the operand of step 'residual' is given to the call: write None")
            numbers.append(0.0)
            continue
        checks.number(f"prepare_steps: the operand of step {kind!r}", operand)
        if isinstance(operand, int | float) and math.isfinite(operand):
            numbers.append(float(np.float32(operand)))
            continue
        operand = jnp.asarray(operand, jnp.float32) if isinstance(operand, int | float) else jnp.asarray(operand)
        if operand.dtype != jnp.float32 or operand.shape not in ((), (out,)):
            raise ValueError(
                f"prepare_steps: the operand of step {kind!r} must be float32 () or (out,) = ({out},), got {operand.dtype} {operand.shape}"
            )
        numbers.append(None)
        operands.append(jnp.broadcast_to(operand, (out,)))
    return Steps(
        table=grouped(jnp.stack(operands), feature_group_count) if operands else None,
        kinds=tuple(kind for kind, _ in steps),
        numbers=tuple(numbers),
        out=out,
        groups=feature_group_count,
    )


def apply_steps(
    value: Float[Array, "*rows out"], steps: Steps, residual: Float[Array, "*rows out"] | None = None
) -> Float[Array, "*rows out"]:
    """The steps as separate operations, in order: what a fused call reproduces bit for bit."""
    rows = iter(() if steps.table is None else steps.table.reshape(len(steps.table), steps.groups, -1))
    for kind, number in zip(steps.kinds, steps.numbers, strict=True):
        if kind == RESIDUAL:
            assert residual is not None
            more = value.shape[-1] - residual.shape[-1]
            value = value + jnp.pad(residual, [(0, 0)] * (value.ndim - 1) + [(0, more)])
            continue
        operand = (
            next(rows)[:, : steps.out // steps.groups].reshape(-1)
            if number is None
            else jnp.full(steps.out, number, jnp.float32)
        )
        if kind == "add":
            value = value + operand
        elif kind == "mul":
            value = rounded_product(value, operand)
        else:
            value = (lax.max if kind == "max" else lax.min)(value, jnp.broadcast_to(operand, value.shape))
    return value


def check_kinds(steps: Steps) -> None:
    """Raises ValueError or TypeError where `kinds` and `numbers` do not fit together."""
    for name in ("kinds", "numbers"):
        if not isinstance(getattr(steps, name), tuple):
            raise TypeError(f"Steps.{name} must be a tuple, got {checks.kind_of(getattr(steps, name))}")
    if len(steps.kinds) != len(steps.numbers) or len(steps.kinds) > MOST_STEPS:
        raise ValueError(f"Steps.kinds and numbers must have one entry a step, got {steps.kinds} and {steps.numbers}")
    for kind, number in zip(steps.kinds, steps.numbers, strict=True):
        checks.word("each of Steps.kinds", kind, _ALL)
        if number is not None:
            checks.number("each of Steps.numbers", number)
