"""`init` and `calibrate`: from parameters and batches to the state of every site."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.core.checks import is_traced, not_finite
from lowbit.core.keywords import check_keywords, merged, shares_keywords
from lowbit.core.paths import flatten
from lowbit.interpret.integer import spans
from lowbit.interpret.observe import observer
from lowbit.interpret.state import QState, empty_statistics, initial_state
from lowbit.interpret.trace import Model
from lowbit.packed import arguments
from lowbit.plan.rows import Plan


@shares_keywords("lowbit.init")
def init(
    fn: Model,
    plan: Plan,
    params: Any,
    *args: Any,
    key: Array | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> QState:
    """Returns the state of every site, inputs measured on one example batch.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`.
        params: float parameters.
        *args: an example batch; its values set the input ranges.
        key: a typed key, for quantizers that start at random; `jax.random.key(0)` by default.
        kwargs: keyword arguments of ``fn``, whatever their names: ``key`` too.
        **keywords: keyword arguments of ``fn``.

    Returns:
        ``{"learn": ..., "fixed": ...}``; ``["learn"]`` goes to optax.

    Raises:
        TypeError: for a ``key`` that could be init's and the model's (`lowbit.core.keywords`).
        ValueError: if a weight or an input holds NaN or infinity (not checked under jit).
    """
    kwargs = merged(keywords, kwargs)
    arguments.check(fn=fn, plan=plan, params=params, key=key)
    arguments.check_call(fn, params, args, kwargs)
    return calibrate(fn, plan, params, [args], key=key, kwargs=kwargs)


def calibrate(
    fn: Model,
    plan: Plan,
    params: Any,
    batches: Iterable[Any],
    *,
    sequential: bool = False,
    key: Array | None = None,
    kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> QState:
    """Returns the state of every site, inputs measured over ``batches``.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`.
        params: float parameters.
        batches: argument tuples ``args`` of ``fn(params, *args)``; one is in memory at a time.
        sequential: measure inputs as earlier operations, already quantized, leave them.
        key: a typed key; `jax.random.key(0)` by default.
        kwargs: keyword arguments of ``fn``, the same for every batch.
        progress: called with the number of batches done.

    Returns:
        ``{"learn": ..., "fixed": ...}``.

    Raises:
        ValueError: if there is no batch, or NaN or infinity in weights or inputs, by name and batch, or if a grid of a
            full-integer plan that several tensors share leaves one of them hardly a level. Under jit this is not
            checked: a NaN then makes the scale of its site NaN, and everything that is served with it.
        TypeError: if a batch is not a tuple of arguments.
    """
    arguments.check(fn=fn, plan=plan, params=params, sequential=sequential, key=key, kwargs=kwargs, progress=progress)
    arguments.check_leaves(plan, params)
    if kwargs is not None:
        check_keywords("lowbit.calibrate", None, ("kwargs",), {"kwargs": kwargs})
    key = jax.random.key(0) if key is None else key
    _check_weights(plan, params)
    statistics = empty_statistics(plan)
    for step in plan.steps:
        if step.kind in spans.JOINS:
            statistics.setdefault(step.path, {})[spans.ROLE] = spans.empty(step)
    qstate = initializer(plan)(params, statistics, key) if sequential else {}
    step = observer(fn, plan, sequential=sequential)
    count = 0
    for given in arguments.iterated(batches):
        batch = arguments.batch_of(given, count)
        arguments.check_call(fn, params, batch, dict(kwargs or {}), f"batches[{count}]")
        statistics = step(params, qstate, statistics, batch, dict(kwargs or {}))
        _check_batch(statistics, count)
        count += 1
        if progress is not None:
            progress(count)
    if count == 0:
        raise ValueError("batches is empty: input ranges need at least one batch")
    _check_statistics(statistics)
    made = initializer(plan)(params, statistics, key)
    spans.check(plan, statistics, made)
    return made


@functools.lru_cache(maxsize=256)
def initializer(plan: Plan) -> Callable[..., QState]:
    """Returns the jitted `initial_state` of a plan."""
    return jax.jit(lambda params, statistics, key: initial_state(plan, params, statistics, key))


def _check_weights(plan: Plan, params: Any) -> None:
    wanted = {path for row in plan.rows for site in row.sites if site.spec is not None for path in site.leaves}
    leaves = dict(zip(*flatten(params)[:2], strict=True))
    for path in not_finite({path: leaf for path, leaf in leaves.items() if path in wanted}):
        raise ValueError(f"weight {path!r} holds NaN or infinity: it has no grid; mend the parameters first")


def _check_batch(statistics: Mapping[str, Any], batch: int) -> None:
    flags = {
        f"the {role} of {path!r}": each["not_finite"]
        for path, role, each in _sites(statistics)
        if role != spans.ROLE  # what a step joins is measured where it comes from
    }
    for name, flag in jax.device_get({name: flag for name, flag in flags.items() if not is_traced(flag)}).items():
        if np.any(flag):
            raise ValueError(
                f"{name} held NaN or infinity in the calibration data, first in batch {batch} (counted from 0): it has no "
                f"range; check the batches, or give the operation the rule 'keep'"
            )


def _sites(statistics: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    return ((path, role, each) for path, roles in statistics.items() for role, each in roles.items())


def _check_statistics(statistics: Mapping[str, Any]) -> None:
    for path, role, states in _sites(statistics):
        name = f"the {role} of {path!r}"
        counts = [x for x in jax.tree.leaves(states) if jnp.issubdtype(x.dtype, jnp.integer) and not is_traced(x)]
        if any((np.asarray(count) == 0).any() for count in counts):
            raise ValueError(
                f"{name} saw no data: every batch was empty, or the branch or loop it is in was never taken; calibrate with "
                f"batches that take it, or give the operation the rule 'keep'"
            )
