"""The losses that float and quantization-aware training pass to the one loop. Cached: every seed shares one compilation."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from lowbit.adapters.nnx import NNXFunction
from lowbit.interpret.simulate import simulate
from lowbit.plan.rows import Plan
from lowbit.rewrites import batch_norm

from .experiment import Loss, Penalty
from .samples import arguments
from .training import Trainable


@functools.lru_cache(maxsize=8)
def float_loss(fn: Callable[..., Any], train_fn: Callable[..., Any] | None, loss: Loss) -> Trainable:
    """Returns what trains the float function, in its training form where it has one."""

    def trained(tree, rest, inputs, labels, key, step):
        if train_fn is None:
            y, state = fn(tree["params"], rest["state"], *arguments(inputs)), rest["state"]
        else:
            y, state = train_fn(tree["params"], rest["state"], *arguments(inputs), **_streams(train_fn, key))
        return loss(y, labels), {"state": state}

    return trained


@functools.lru_cache(maxsize=64)
def quantized_loss(
    fn: Callable[..., Any],
    train_fn: Callable[..., Any] | None,
    plan: Plan,
    loss: Loss,
    penalty: Penalty | None,
    freeze_norms: int | None,
) -> Trainable:
    """Returns what trains the function under a plan; see `lowbit.run.experiment.Method`."""
    called = fn if train_fn is None else train_fn

    def trained(tree, rest, inputs, labels, key, step):
        qstate = {"learn": tree["learn"], "fixed": rest["fixed"]}
        run, params = called, tree["params"]
        given = {} if train_fn is None else _streams(train_fn, jax.random.fold_in(key, 1))
        if freeze_norms is not None:
            run, params, _ = batch_norm.fold(*arguments(inputs), **given)(called, params, rest["state"])
            given |= {} if train_fn is None else {"frozen": step >= freeze_norms}
        simulated = simulate(run, plan, train=True)
        y, after = simulated(params, qstate, rest["state"], *arguments(inputs), key=key, step=step, **given)
        y, state = (y, rest["state"]) if train_fn is None else y
        value = loss(y, labels)
        if penalty is not None:
            value = value + penalty(plan, tree["params"], qstate)
        return value, {"state": state, "fixed": after["fixed"]}

    return trained


def _streams(train_fn: Callable[..., Any], key: jax.Array) -> dict[str, Any]:
    """The random streams of a call: an nnx module's are in its state."""
    return {} if isinstance(train_fn, NNXFunction) else {"rngs": {"dropout": key}}
