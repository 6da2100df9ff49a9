"""Quantization-aware training of a piece: with the widths that are learned, and after them with those that were."""

import functools
from collections.abc import Callable
from typing import Any

import jax

import lowbit as lb
from lowbit.core.quantizer import QState
from lowbit.plan.rows import Plan, Row
from lowbit.rewrites import batch_norm

from .experiment import Method, Model, Settled
from .floats import float_model
from .folder import SETTLED
from .job import Job, calibration, score
from .losses import quantized_loss
from .measure import outputs
from .samples import Split, chosen, count
from .training import train
from .trajectory import trajectory

EPOCH_SAMPLES = 1_000
"""Test inputs, at most, that the metric of a quantized training is measured on after every epoch."""


def quantized(
    job: Job,
    method: Method,
    model: Model,
    plan: Plan,
    qstate: QState,
    seed: int,
    name: str,
    key: str,
    *,
    is_settled: bool = False,
) -> tuple[Model, QState]:
    """Returns the model and the state of its quantizers after training, or read back.

    Args:
        job: the run.
        method: whose loss, penalty and norms count.
        model: parameters to begin with.
        plan: of the function that is served.
        qstate: its state to begin with.
        seed: of the order of samples.
        name: of the piece.
        key: of its training state.
        is_settled: whether this is the training that follows learned widths: by `Method.settled`, without the penalty that moved
            them, with norms as the first training left them.
    """
    loss = method.distill or job.experiment.loss
    assert loss is not None
    given, first = calibration(job)[0], method.fit
    assert first is not None
    fit, part, before, penalty, freeze = first, name, 0, method.penalty, method.freeze_norms
    if is_settled:
        assert method.settled is not None
        fit, part, before, penalty = method.settled.fit, f"{name}/{SETTLED}", first.epochs, None
        freeze = None if freeze is None else 0

    def evaluate(tree: Any, rest: Any) -> dict[str, Any]:
        state, now = (
            {"learn": tree["learn"], "fixed": rest["fixed"]},
            model._replace(params=tree["params"], state=rest["state"]),
        )
        fn, params = served(method, now, given)
        if job.experiment.metric is None:
            return trajectory(plan)(params, state)
        call = lb.simulate(fn, plan)
        some = chosen(job.data.test.inputs, slice(EPOCH_SAMPLES))
        results = outputs(
            lambda *x: call(params, state, rest["state"], *x), some, min(count(some), job.experiment.test_batch)
        )
        return {"metric": score(job, results), **trajectory(plan)(params, state)}

    tree, rest = train(
        quantized_loss(model.fn, model.train_fn, plan, loss, penalty, freeze),
        {"params": model.params, "learn": qstate["learn"]},
        {"state": model.state, "fixed": qstate["fixed"]},
        job.data.train if method.distill is None else taught(job, seed),
        fit,
        seed=seed,
        state=job.folder.state(part, key),
        watch=job.training(name, after=before),
        evaluate=evaluate,
    )
    trained = model._replace(params=tree["params"], state=rest["state"])
    return trained, {"learn": tree["learn"], "fixed": rest["fixed"]}


def settled_plan(plan: Plan, qstate: QState, settled: Settled) -> Plan:
    """Returns the plan of the widths that were learned, with the quantizers that train on with them."""
    is_learned = {row.path for row in plan.quantized if any(s.quantizer and not s.quantizer.is_hard for s in row.sites)}
    hardened, _ = lb.harden(plan, qstate)

    def choose(row: Row) -> lb.Quantizers | None:
        return settled.quantizers(row) if row.path in is_learned else None

    return lb.with_quantizers(hardened, choose)


@functools.lru_cache(maxsize=1)
def taught(job: Job, seed: int) -> Split:
    """Returns the training inputs with the float model's outputs in the place of labels."""
    model, train = float_model(job, seed), job.data.train.taken(job.data.train.size)
    call = jax.jit(model.fn)
    right = outputs(lambda *x: call(model.params, model.state, *x), train.inputs, job.experiment.test_batch)
    return Split(train.inputs, right)


def served(method: Method, model: Model, given: tuple[Any, ...]) -> tuple[Callable[..., Any], Any]:
    """Returns the function that is quantized and its parameters: the model's, with batch norms folded where the method says so."""
    if method.freeze_norms is None:
        return model.fn, model.params
    fold = batch_norm.fold(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given))
    fn, params, _ = fold(model.fn, model.params, model.state)
    return fn, params
