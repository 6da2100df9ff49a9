"""`simulate`: the model on the grid it will be served on, differentiable."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.keywords import merged, shares_keywords
from lowbit.interpret.trace import Args, Kwargs
from lowbit.packed import arguments
from lowbit.plan.rows import Plan

from .codes import checked_codes
from .interpretation import interpretation_of
from .state import QState, check_state, collected
from .switch import watched
from .trace import Model, trace_planned


def simulate(
    fn: Model,
    plan: Plan,
    *,
    train: bool = False,
    custom_vjp: str = "raise",
    codes: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Returns ``run(params, qstate, *args, **kwargs)``: ``fn`` with every planned operation on its grid.

    Operations whose operands are both integers accumulate exactly and share one epilogue with `lowbit.execute`: the
    results agree to the last bit. Other quantized operations dequantize and accumulate in float. Gradients pass
    straight through, as each quantizer says; in a full-integer plan what rounding alone puts beyond a grid, by half a step
    at most, counts as its end. Where no operation is quantized this is ``jax.jit(fn)``.

    Args:
        fn: the function the plan was bound for, or another with the same operations (training and evaluation).
        plan: from `lowbit.bind`.
        train: use the quantizers' training forms; ``run`` then takes ``key=`` and ``step=`` and returns
            ``(y, qstate')``. A model's own ``key`` or ``step`` goes in ``kwargs={...}``, which ``run`` always takes.
            Without it, differentiating ``run`` warns where a quantizer trains in another form than it serves, or keeps a
            state while training.
        custom_vjp: ``"raise"`` if a quantized operation lies inside a function with its own gradient, or ``"body"`` to
            differentiate the body instead. In a full-integer plan, where a grid lies inside such a function, differentiating
            it raises.
        codes: what a solver chose in place of the nearest codes, as for `lowbit.pack`: ``run`` is then what
            ``lowbit.execute`` of ``lowbit.pack(plan, params, qstate, codes)`` is. Gradients reach parameters straight through,
            and scales as the chosen levels have them. Other codes of the same plan compile nothing.

    Returns:
        A function, jitted inside and cached by ``(fn, plan)`` and shapes: a second call compiles nothing.

    Raises:
        TypeError: at the call, for a keyword that could be lowbit's and the model's (`lowbit.core.keywords`); for codes that are
            not integers.
        ValueError: at the call, if the traced operations differ from the plan, or ``qstate`` is another plan's; for codes that
            `lowbit.pack` refuses, or codes beside ``train=True``.
    """
    if custom_vjp not in ("raise", "body"):
        raise ValueError(f"custom_vjp must be 'raise' or 'body', got {custom_vjp!r}")
    arguments.check(fn=fn, plan=plan, train=train)
    if codes is None:
        return _simulator(fn, plan, train=train, custom_vjp=custom_vjp)
    if train:
        raise ValueError("codes= are fixed, and train=True rounds anew: leave one of the two out")
    return functools.partial(
        _simulator(fn, plan, train=False, custom_vjp=custom_vjp, has_codes=True), checked_codes(plan, codes)
    )


@functools.lru_cache(maxsize=256)
def _simulator(fn: Model, plan: Plan, *, train: bool, custom_vjp: str, has_codes: bool = False) -> Callable[..., Any]:
    @jax.jit
    def compiled(params, qstate, args, kwargs, key, step, codes):
        y, after = simulation(
            fn, plan, params, qstate, args, kwargs, train=train, key=key, step=step, custom_vjp=custom_vjp, codes=codes
        )
        return (y if train else watched(plan, y)), after

    def checked(params: Any, qstate: QState, args: Args, kwargs: dict[str, Any]) -> dict[str, Any]:
        arguments.check(params=params)
        check_state(plan, qstate)
        arguments.check_leaves(plan, params)
        arguments.check_call(fn, params, args, kwargs)
        return kwargs

    if train:

        @shares_keywords("lowbit.simulate(train=True)", fn)
        def run_train(params, qstate, /, *args, key: Array | None = None, step: Any = None, kwargs=None, **keywords):
            arguments.check(key=key)
            given = checked(params, qstate, args, merged(keywords, kwargs))
            step = None if step is None else jnp.asarray(step, jnp.int32)
            return compiled(params, qstate, args, given, key, step, {})

        return run_train

    if has_codes:

        @shares_keywords("lowbit.simulate", fn)
        def run_chosen(codes, params, qstate, /, *args, kwargs=None, **keywords):
            given = checked(params, qstate, args, merged(keywords, kwargs))
            return compiled(params, qstate, args, given, None, None, codes)[0]

        return run_chosen

    @shares_keywords("lowbit.simulate", fn)
    def run(params, qstate, /, *args, kwargs=None, **keywords):
        given = checked(params, qstate, args, merged(keywords, kwargs))
        return compiled(params, qstate, args, given, None, None, {})[0]

    return run


def simulation(
    fn: Model,
    plan: Plan,
    params: Any,
    qstate: QState,
    args: Args,
    kwargs: Kwargs,
    *,
    train: bool = False,
    key: Array | None = None,
    step: Array | None = None,
    custom_vjp: str = "raise",
    codes: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Returns ``(y, qstate')`` of one simulated call; `simulate` is this under jit."""
    check_state(plan, qstate)
    traced = trace_planned(fn, plan, params, args, dict(kwargs))
    if not plan.quantized:
        return fn(params, *args, **kwargs), (collected(plan, {}, {}) if train else qstate)
    return interpretation_of(plan).simulated(
        plan, traced, qstate, train=train, key=key, step=step, custom_vjp=custom_vjp, codes=codes or {}
    )
