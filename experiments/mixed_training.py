"""Training without an experiment's engine: a float classifier, and a quantized network that is taught by the float one."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowbit as lb
from lowbit.learn.distill import logits_loss
from lowbit.plan.rows import Plan
from lowbit.run import Model, cross_entropy
from lowbit.run.experiment import Loss


def _steps(count: int, batch: int, epochs: int, seed: int) -> np.ndarray:
    """Indices of every step's samples, ``[steps, batch]``; a last short batch of an epoch is left out."""
    draw = np.random.default_rng(seed)
    each = count // batch * batch
    return np.concatenate([draw.permutation(count)[:each].reshape(-1, batch) for _ in range(epochs)])


def fitted(
    model: Model,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
    loss: Loss = cross_entropy,
) -> Model:
    """Returns the model trained on labels: Adam, a cosine schedule down to zero."""
    index = _steps(len(x), batch, epochs, seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(index)))

    @jax.jit
    def step(params: Any, moments: Any, x: Any, labels: Any) -> Any:
        grads = jax.grad(lambda p: loss(model.fn(p, model.state, x), labels))(params)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), moments

    params, moments = model.params, optimizer.init(model.params)
    for some in index:
        params, moments = step(params, moments, x[some], labels[some])
    return model._replace(params=params)


def taught(
    model: Model,
    rules: Mapping[str, str],
    x: np.ndarray,
    *,
    epochs: int,
    batch: int,
    rate: float,
    step_rate: float,
    seed: int,
) -> tuple[Plan, lb.QParams]:
    """Returns a plan with learned steps (LSQ) and its packed parameters, trained on the float model's logits of inputs.

    Args:
        model: the float one, which teaches and is where training begins.
        rules: as of `lowbit.bind`, texts: every one becomes LSQ's.
        x: inputs, without labels.
        epochs: passes over them.
        batch: samples of a step.
        rate: of the parameters: Adam, a cosine schedule down to zero.
        step_rate: of the steps.
        seed: of the order.
    """
    learned = {glob: text if text == "keep" else lb.lsq(text) for glob, text in rules.items()}
    plan = lb.bind(model.fn, learned, model.params, model.state, x[:batch])
    qstate = lb.calibrate(model.fn, plan, model.params, [(model.state, x[:batch])])
    index = _steps(len(x), batch, epochs, seed)
    schedule = functools.partial(optax.cosine_decay_schedule, decay_steps=len(index))
    optimizer = optax.multi_transform(
        {"params": optax.adam(schedule(rate)), "learn": optax.adam(schedule(step_rate))},
        {"params": "params", "learn": "learn"},
    )
    teacher, student = jax.jit(model.fn), lb.simulate(model.fn, plan)

    @jax.jit
    def step(tree: Any, moments: Any, x: Any, right: Any) -> Any:
        def loss(tree: Any) -> Any:
            y = student(tree["params"], {**qstate, "learn": tree["learn"]}, model.state, x)
            return logits_loss(y, right)

        updates, moments = optimizer.update(jax.grad(loss)(tree), moments, tree)
        return optax.apply_updates(tree, updates), moments

    tree = {"params": model.params, "learn": qstate["learn"]}
    moments = optimizer.init(tree)
    for some in index:
        tree, moments = step(tree, moments, x[some], teacher(model.params, model.state, jnp.asarray(x[some])))
    return plan, lb.pack(plan, tree["params"], {**qstate, "learn": tree["learn"]})
