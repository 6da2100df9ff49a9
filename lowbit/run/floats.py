"""The float network of a seed: made, trained or read back, and what it gives."""

import functools
from typing import Any

import jax
import numpy as np

from .experiment import FLOAT, Method, Model
from .job import Job, score
from .keys import float_key
from .losses import float_loss
from .measure import outputs
from .training import train


@functools.lru_cache(maxsize=1)
def network(job: Job, seed: int) -> Model:
    """Returns the network of a seed as the experiment makes it; the last one is kept."""
    return job.experiment.model(seed)


@functools.lru_cache(maxsize=8)
def float_model(job: Job, seed: int) -> Model:
    """Returns the float model of a seed, trained or read back; one worker trains it, the others wait."""
    config = job.experiment
    model = network(job, seed)
    if config.fit is None:
        return model
    here = f"seed-{seed}/{FLOAT}"
    with job.folder.locked(f"{here}/training"):
        return fitted(job, model, Method(FLOAT, {}, config.fit), seed, here, float_key(job, seed))


@functools.lru_cache(maxsize=2)
def float_outputs(job: Job, seed: int) -> np.ndarray:
    """Returns the outputs of the float function of a seed for all test inputs; the last ones are kept."""
    model = float_model(job, seed)
    call = jax.jit(model.fn)
    return outputs(lambda *x: call(model.params, model.state, *x), job.data.test.inputs, job.experiment.test_batch)


def fitted(job: Job, model: Model, method: Method, seed: int, name: str, key: str) -> Model:
    """Returns the model after float training, or read back."""
    assert method.fit is not None
    assert job.experiment.loss is not None

    def evaluate(tree: Any, rest: Any) -> dict[str, float]:
        call = jax.jit(model.fn)
        results = outputs(
            lambda *x: call(tree["params"], rest["state"], *x), job.data.test.inputs, job.experiment.test_batch
        )
        return {"metric": score(job, results)}

    scored = evaluate if job.experiment.metric is not None else None
    tree, rest = train(
        float_loss(model.fn, model.train_fn, job.experiment.loss),
        {"params": model.params},
        {"state": model.state},
        job.data.train,
        method.fit,
        seed=seed,
        state=job.folder.state(name, key),
        watch=job.training(name),
        around=method.around,
        evaluate=scored,
    )
    return model._replace(params=tree["params"], state=rest["state"])
