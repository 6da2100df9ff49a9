"""`observe`: statistics of any operand or result of any operation, folded over batches."""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lowbit.core.keywords import check_keywords
from lowbit.core.paths import is_match, nearest
from lowbit.core.statistics import NotFinite, Statistic
from lowbit.interpret import observe as walk
from lowbit.interpret.codes import checked_codes
from lowbit.interpret.interpretation import interpretation_of
from lowbit.interpret.observe import OUTPUT, Watch
from lowbit.interpret.state import QState, check_state
from lowbit.interpret.trace import Model, Trace, trace_planned
from lowbit.packed import arguments
from lowbit.plan.rows import Plan, Row

from . import besides
from .fold import fold, unseen
from .parameters import at_parameters
from .resumed import Resumed

Wanted = Mapping[str, Mapping[str, Sequence[Statistic]]]
"""``{glob over operations: {role: statistics}}``"""


def observe(
    fn: Model,
    plan: Plan,
    params: Any,
    batches: Iterable[Any],
    wanted: Wanted,
    *,
    qstate: QState | None = None,
    codes: Mapping[str, Any] | None = None,
    loss: Callable[[Any], Any] | None = None,
    beside: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    cache: str | Path | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the statistics that are wanted of operands and results of operations: ``{path: {role: {name: value}}}``.

    Operations need not be quantized. One batch is in memory at a time; what is kept does not grow with their number.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`; its rows name the operations.
        params: float parameters.
        batches: argument tuples ``args`` of ``fn(params, *args)``.
        wanted: ``{glob: {role: statistics}}``. Roles are ``weight``, ``input`` (``lhs``, ``rhs`` of a product of two
            activations) and ``output``. What several globs want of one operand is united. A glob of wildcards passes over
            operations without the role, or whose operand the statistic does not read; one that names an operation does not.
        qstate: from `lowbit.init` or `lowbit.calibrate`: the model is then computed as `lowbit.simulate` does. Statistics
            of the product (`lowbit.core.statistics.Statistic.is_of_product`), such as `lowbit.core.moments.Gram`, see an
            operand on its own grid, the others as what precedes leaves it. None: the model in float. Of a full-integer plan
            an operand is on its grid before the operation reads it, and ``output`` is what the operation leaves on its own
            grid, with the bias, relu and clips that it absorbs (`lowbit.plan.rows.Step.absorbed`); so is the float value
            beside it.
        codes: of weights, as a solver chose them (`lowbit.pack`), in place of the nearest; beside ``qstate``.
        loss: from the result of ``fn`` to a scalar, for statistics beside gradients; None: ``fn`` returns one. Gradients are
            those of the float model.
        beside: parameters of the float model that statistics beside the float operand see: those before rounding, where
            ``params`` are rounded. None: ``params``.
        kwargs: keyword arguments of ``fn``, the same for every batch.
        progress: called with the number of batches done.
        cache: a folder where states are kept: every 8 batches, and when all are done. A pass that was killed goes on there,
            one that is repeated costs its first batch; batches must then be the same ones in the same order. Outside `jax.jit`.

    Returns:
        Finished values by operation path, role and the statistic's name. Of an operation in a scan over layers they have
        a leading axis for the layers. Statistics of the product, of a parameter that several operations or all layers of a
        scan share, are merged under the parameter's path.

    Raises:
        ValueError: if there is no batch, NaN or infinity in an operand that is looked at, a glob that matches nothing, or a
            state that is another plan's; for a statistic beside the float operand or a gradient, an operation in a loop that
            is not over layers.
        TypeError: if a batch is not a tuple of arguments, or something wanted is no statistic.

    Example:
        >>> import jax.numpy as jnp
        >>> from lowbit.core.moments import Gram
        >>> from lowbit.interpret.bind import bind
        >>> fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> plan = bind(fn, {}, params, x)
        >>> observe(fn, plan, params, [(x,)], {"**": {"input": (Gram(),)}})["w"]["input"]["gram"].tolist()
        [[[5.0, 1.0], [1.0, 2.0]]]
    """
    arguments.check(fn=fn, plan=plan, params=params, kwargs=kwargs, progress=progress)
    arguments.check_leaves(plan, params)
    if kwargs is not None:
        check_keywords("lowbit.observe", None, ("kwargs",), {"kwargs": kwargs})
    if qstate is not None:
        check_state(plan, qstate)
    if codes is not None and qstate is None:
        raise ValueError("codes are of a quantized model: give its qstate= too")
    chosen = checked_codes(plan, codes)
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of the result of fn, got {loss!r:.40} ({type(loss).__name__})")
    watch: Watch | None = None

    def step(states: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        nonlocal watch
        if watch is None:
            traced = trace_planned(fn, plan, params, args, keywords)
            watch = _watch(plan, traced, wanted)
            states = walk.empty(watch, plan, traced)
        run = _stepper(fn, plan, watch, loss, is_quantized=qstate is not None)
        states, turns = run(params, qstate, states, args, keywords, chosen, beside)
        besides.check_turns(turns)
        return states

    content = params, {} if qstate is None else qstate, chosen, {} if beside is None else beside
    resumed = Resumed(cache, f"observe {plan.fingerprint} {wanted}", content)
    states = fold(step, fn, params, batches, kwargs, progress, resumed=resumed)
    assert watch is not None
    lost = unseen(states)
    if len(lost) == len(watch.places):
        raise ValueError(f"{lost[0]} saw no data: every batch was empty, or nothing that is looked at was computed")
    if lost:
        warnings.warn(
            f"{', '.join(lost)}: no batch had a value, in a layer at least; the branch or loop it is in was never taken",
            stacklevel=2,
        )
    return _finished(plan, watch, states)


@functools.lru_cache(maxsize=64)
def _stepper(fn: Model, plan: Plan, watch: Watch, loss: Any, *, is_quantized: bool) -> Callable[..., Any]:
    @jax.jit
    def step(params, qstate, states, args, kwargs, codes, other):
        traced = trace_planned(fn, plan, params, args, dict(kwargs))
        floats, given = (traced, params)
        if other is not None:
            floats, given = trace_planned(fn, plan, other, args, dict(kwargs)), other
        kinds = {"kinds": interpretation_of(plan).beside} if is_quantized else {}
        beside, turns = besides.values(fn, plan, floats, watch, loss, given, args, kwargs, **kinds)
        if not is_quantized:
            return walk.observation(plan, traced, watch, states, beside=beside), turns
        how = {"qstate": qstate, "codes": codes, "floats": floats, "beside": beside}
        return interpretation_of(plan).observed(plan, traced, watch, states, **how), turns

    return step


def _watch(plan: Plan, traced: Trace, wanted: Any) -> Watch:
    """What is wanted, by operation; checked."""
    if not isinstance(wanted, Mapping):
        raise TypeError(f"wanted must be {{glob: {{role: statistics}}}}, got {wanted!r:.40} ({type(wanted).__name__})")
    operations = {op.path: op for op in traced.inventory.operations}
    statistics_of: dict[str, dict[str, list[Statistic]]] = {}
    for glob, roles in wanted.items():
        if not isinstance(glob, str) or not isinstance(roles, Mapping):
            raise TypeError(f"wanted must be {{glob: {{role: statistics}}}}, got {glob!r}: {roles!r:.40}")
        rows = [row for row in plan.rows if is_match(glob, row.path) or is_match(glob, row.base)]
        if not rows:
            near = ", ".join(nearest(glob, [row.path for row in plan.rows])) or "(there are none)"
            raise ValueError(f"wanted[{glob!r}] matches no operation; the nearest paths are {near}")
        for role, statistics in roles.items():
            _check_statistics(glob, role, statistics)
            is_broad, taken = not any(c not in "*/?" for c in glob), 0
            for row in rows:
                if not _has(row, role):
                    continue
                operand = walk.observed(operations[row.path], row, role)
                readable = [s for s in statistics if _reads(s, operand)]
                if not is_broad and len(readable) < len(statistics):
                    lost = next(s for s in statistics if s not in readable)
                    raise ValueError(
                        f"wanted[{glob!r}]: {lost} does not read the {role} of {row.path!r}, {operand.dtype} {operand.shape}"
                    )
                into = statistics_of.setdefault(row.path, {}).setdefault(role, [])
                into += [s for s in readable if s not in into]
                taken += len(readable)
            if not taken:
                have = sorted({name for row in rows for name in (*(site.role for site in row.sites), OUTPUT)})
                raise ValueError(
                    f"wanted[{glob!r}][{role!r}] finds nothing to look at: the operations it matches have the roles "
                    f"{', '.join(have)}, or no operand that {', '.join(str(s) for s in statistics)} reads"
                )
    places = {row.path: statistics_of[row.path] for row in plan.rows if row.path in statistics_of}
    for roles in places.values():
        for statistics in roles.values():
            if statistics and not any(isinstance(s, NotFinite) for s in statistics):
                statistics.append(NotFinite())
    return Watch.of({path: {role: each for role, each in roles.items() if each} for path, roles in places.items()})


def _check_statistics(glob: str, role: Any, statistics: Any) -> None:
    if not isinstance(statistics, tuple | list) or not all(isinstance(s, Statistic) for s in statistics):
        raise TypeError(f"wanted[{glob!r}][{role!r}] must be a tuple of statistics, got {statistics!r:.60}")
    names = [s.name for s in statistics]
    if len(set(names)) != len(names):
        raise ValueError(f"wanted[{glob!r}][{role!r}] has two statistics of one name: {', '.join(names)}")


def _has(row: Row, role: str) -> bool:
    return role == OUTPUT or any(site.role == role for site in row.sites)


def _reads(statistic: Statistic, operand: Any) -> bool:
    try:
        jax.eval_shape(lambda: statistic.init(operand))
    except TypeError:
        return False
    return True


@functools.partial(jax.jit, static_argnums=(0, 1))  # once for plans alike: every pass over the data ends in it
def _finished(plan: Plan, watch: Watch, states: Any) -> Any:
    values = walk.finished(watch, plan, states)
    for key, name, statistic, state, depth in at_parameters(plan, watch, states):
        done: Any = statistic.finish
        for _ in range(depth):
            done = jax.vmap(done)
        values.setdefault(key, {}).setdefault("input", {})[name] = done(state)
    return values
