"""Batch-norm re-estimation: running statistics measured anew with the trained, quantized model.

Reference: Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022,
https://arxiv.org/abs/2203.11086, section 3.1: weights that oscillate at the end of training leave running averages that belong to
none of the networks passed through. ``m``: the momentum of the running average.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.keywords import explicit
from lowbit.interpret.simulate import simulate
from lowbit.interpret.state import QState
from lowbit.interpret.trace import Model
from lowbit.plan.rows import Plan

_FAR = 2.0**40
"""The running average at which momentum is measured: far above any statistic, and its square is finite."""

_SLOWEST = 1.0 - 2.0**-16
"""A momentum above this is none: float32 could not tell such an average from a counter."""


def reestimate(
    fn: Model,
    plan: Plan,
    params: Any,
    qstate: QState,
    state: Any,
    batches: Iterable[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Returns ``state`` with every running statistic replaced by its mean over ``batches``; nothing of the old is left.

    A running statistic is a float leaf that ``fn`` updates to ``m * old + (1 - m) * batch``. ``fn`` is simulated from
    ``old = 0`` and, once, from an ``old`` far away, which gives ``m``; so momentum need not be known, and batches weigh
    equally. Float32; relative error ``eps / (1 - m)``. Everything else (random streams, counters) is returned as it was.

    Args:
        fn: the training function, ``fn(params, state, *args) -> (y, state')``; folded by
            `lowbit.rewrites.batch_norm.fold` or not. Dropout acts as ``fn`` says.
        plan: its plan.
        params: of ``fn``.
        qstate: the trained state of the quantizers.
        state: of ``fn``.
        batches: argument tuples after ``params, state``; one is in memory at a time.
        kwargs: keyword arguments of ``fn``, the same for every batch.
        progress: called with the number of batches done.

    Raises:
        ValueError: if there is no batch, no running statistic, or a result that is not finite.
        TypeError: if a batch is not a tuple of arguments, or ``fn`` does not return ``(y, state')``.

    Example:
        >>> from lowbit.interpret.bind import bind
        >>> def fn(p, state, x):
        ...     y = x @ p
        ...     return y, {"mean": 0.9 * state["mean"] + 0.1 * y.mean(0)}
        >>> p, spoiled, x = jnp.eye(2), {"mean": jnp.array([9.0, 9.0])}, jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> plan = bind(fn, {}, p, spoiled, x)
        >>> after = reestimate(fn, plan, p, {"learn": {}, "fixed": {}}, spoiled, [(x,), (x + 2.0,)])
        >>> [round(float(mean), 4) for mean in after["mean"]]
        [3.0, 4.0]
    """
    run = simulate(fn, plan)
    keywords = dict(kwargs or {})
    moving: list[int] = []
    shares: dict[int, Any] = {}
    means: dict[int, Any] = {}
    count = 0
    for batch in batches:
        if not isinstance(batch, tuple | list):
            raise TypeError(f"a batch must be a tuple of arguments (x,), got {type(batch).__name__}")
        if count == 0:
            moving = _moving(run, params, qstate, state, batch, keywords)
            near, far = (_after(run, params, qstate, _set(state, moving, at), batch, keywords) for at in (0.0, _FAR))
            shares = {i: 1.0 - _momentum(near[i], far[i]) for i in moving}
            moving = [i for i in moving if shares[i] > 0.0]
            if not moving:
                raise ValueError(
                    "fn updates no running statistic of the form m * old + (1 - m) * batch: is it in training mode?"
                )
        after = _after(run, params, qstate, _set(state, moving, 0.0), batch, keywords)
        count += 1
        for i in moving:
            now = jnp.asarray(after[i], jnp.float32) * np.float32(1.0 / shares[i])
            before = means.get(i, jnp.zeros_like(now))
            means[i] = before + (now - before) * np.float32(1.0 / count)
        if progress is not None:
            progress(count)
    if count == 0:
        raise ValueError("batches is empty: statistics need at least one batch")
    leaves, tree = jax.tree.flatten(state)
    for i in moving:
        if not bool(jnp.all(jnp.isfinite(means[i]))):
            raise ValueError(f"the running statistic {_name(state, i)} came out as NaN or infinity: check the batches")
        leaves[i] = means[i].astype(leaves[i].dtype)
    return jax.tree.unflatten(tree, leaves)


def _after(
    run: Callable[..., Any], params: Any, qstate: QState, state: Any, batch: Any, keywords: dict[str, Any]
) -> list[Any]:
    """The leaves of the state after one batch."""
    result = run(params, qstate, state, *batch, **explicit(keywords))
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError("fn must return (y, state'): adapt the module in training mode, with its statistics mutable")
    leaves, tree = jax.tree.flatten(result[1])
    if tree != jax.tree.structure(state):
        raise TypeError("fn must return a state of the structure it was given")
    return leaves


def _moving(
    run: Callable[..., Any], params: Any, qstate: QState, state: Any, batch: Any, keywords: dict[str, Any]
) -> list[int]:
    """The float leaves of state that one batch changes."""
    after = _after(run, params, qstate, state, batch, keywords)
    return [
        i
        for i, (old, new) in enumerate(zip(jax.tree.leaves(state), after, strict=True))
        if jnp.issubdtype(old.dtype, jnp.floating) and bool(jnp.any(old != new))
    ]


def _momentum(near: Any, far: Any) -> float:
    """``m``, where the two states after a batch differ by ``m`` times the distance of those before; else 1: no average."""
    each = (np.asarray(far, np.float64) - np.asarray(near, np.float64)) / _FAR
    m = float(np.median(each))
    is_average = 0.0 <= m <= _SLOWEST and bool(np.all(np.abs(each - m) <= 2.0**-10))
    return m if is_average else 1.0


def _set(state: Any, moving: list[int], value: float) -> Any:
    leaves, tree = jax.tree.flatten(state)
    for i in moving:
        leaves[i] = jnp.full_like(leaves[i], value)
    return jax.tree.unflatten(tree, leaves)


def _name(state: Any, index: int) -> str:
    return jax.tree_util.keystr(jax.tree_util.tree_flatten_with_path(state)[0][index][0])
