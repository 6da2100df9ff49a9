"""`init` and `calibrate`: from parameters and batches to the state of every site."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array

from lowbit.core.checks import not_finite
from lowbit.core.keywords import check_keywords, merged, shares_keywords
from lowbit.core.paths import flatten
from lowbit.core.qtensor import QTensor
from lowbit.interpret import large
from lowbit.interpret.integer import spans
from lowbit.interpret.interpretation import interpretation_of
from lowbit.interpret.observe import Grids
from lowbit.interpret.state import (
    QState,
    empty_statistics,
    finished,
    initial_state,
    layer_operand,
    quantized_sites,
    quantizer_of,
    site_key,
)
from lowbit.interpret.trace import Model, trace_planned
from lowbit.observe.fold import fold, nothing_but_zero, unseen
from lowbit.observe.resumed import Resumed
from lowbit.packed import arguments
from lowbit.plan.rows import Plan, Site


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
    cache: str | Path | None = None,
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
        cache: a folder where states are kept: every 8 batches, and when all are done. A pass that was killed goes on there,
            one that is repeated costs its first batch; batches must then be the same ones in the same order. Outside `jax.jit`.

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
    if plan.is_full_integer and sequential:
        raise ValueError("sequential=True is not for full-integer plans: their grids are measured in float")
    qstate = _initial(plan, params, empty_statistics(plan), key) if sequential else {}
    observe_batch = _observer(fn, plan, sequential=sequential)

    def step(states: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return observe_batch(params, qstate, _start(plan) if states is None else states, args, keywords)

    resumed = Resumed(cache, f"calibrate {plan.fingerprint} {sequential}", (params, qstate))
    statistics = fold(step, fn, params, batches, kwargs, progress, ignored=spans.ROLE, resumed=resumed)
    _check_statistics(statistics)
    initial = _initial(plan, params, statistics, key)
    initial = spans.kept(plan, statistics, initial)
    spans.check(plan, initial)
    return initial


def _start(plan: Plan) -> dict[str, Any]:
    statistics = empty_statistics(plan)
    for step in plan.steps:
        if spans.is_looked_at(step):
            statistics.setdefault(step.path, {})[spans.ROLE] = spans.empty(plan, step)
    return statistics


@functools.lru_cache(maxsize=256)
def _observer(fn: Model, plan: Plan, *, sequential: bool) -> Callable[..., dict[str, Any]]:
    """Returns ``step(params, qstate, statistics, args, kwargs) -> statistics'``, jitted and cached."""

    @jax.jit
    def step(params, qstate, statistics, args, kwargs):
        traced = trace_planned(fn, plan, params, args, dict(kwargs))
        return interpretation_of(plan).measured(plan, traced, statistics, _so_far(qstate) if sequential else None)

    return step


def _so_far(qstate: QState) -> Grids:
    """Weights on their grids, inputs on those of the statistics so far."""

    def operand(site: Site, x: Any, _: Any, seen: Any) -> QTensor:
        layer = layer_operand(site)
        state = quantizer_of(site).init(layer, finished(site, seen), jax.random.key(0))
        return quantizer_of(site).quantize(state, x, layer)

    return dataclasses.replace(Grids.of(qstate), operand=operand)


def _initial(plan: Plan, params: Any, statistics: Mapping[str, Any], key: Array) -> QState:
    """`initial_state`, in one program but for large weights."""
    leaves = dict(zip(*flatten(params)[:2], strict=True))
    qstate = {
        site.key: large.started(site, leaves[site.key], site_key(key, f"{site.key}/{site.role}"))
        for _, site in quantized_sites(plan)
        if site.kind == "leaf" and large.is_large(leaves[site.key])
    }
    return initializer(plan)(params, statistics, key, qstate)


@functools.lru_cache(maxsize=256)
def initializer(plan: Plan) -> Callable[..., QState]:
    """Returns the jitted `initial_state` of a plan."""
    return jax.jit(lambda params, statistics, key, known: initial_state(plan, params, statistics, key, known=known))


def _check_weights(plan: Plan, params: Any) -> None:
    wanted = {path for row in plan.rows for site in row.sites if site.spec is not None for path in site.leaves}
    leaves = dict(zip(*flatten(params)[:2], strict=True))
    for path in not_finite({path: leaf for path, leaf in leaves.items() if path in wanted}):
        raise ValueError(f"weight {path!r} holds NaN or infinity: it has no grid; mend the parameters first")


def _check_statistics(statistics: Mapping[str, Any]) -> None:
    for name in unseen(statistics):
        raise ValueError(
            f"{name} saw no data: every batch was empty, or the branch or loop it is in was never taken; calibrate with "
            f"batches that take it, or give the operation the rule 'keep'"
        )
    if zeros := nothing_but_zero(statistics):
        more = f" and {len(zeros) - 1} more" if len(zeros) > 1 else ""
        warnings.warn(
            f"{zeros[0]}{more} held nothing but 0 in the calibration data: its range is nothing, and what is served later is clipped "
            "to a grid of steps of 1; calibrate with real inputs",
            UserWarning,
            stacklevel=3,
        )
