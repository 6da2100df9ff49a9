"""The models of a story: trained in float, then calibrated, or trained further, under a plan. Both are kept in its folder."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import lowbit as lb
from experiments.config import FLOAT, Method, fingerprint
from experiments.data.dataset import Dataset
from experiments.models.model import Model
from experiments.progress import Screen, Training
from experiments.run_folder import RunFolder
from experiments.story import Story
from experiments.train import Loss, train


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One story, its data, where its pieces are kept, and what shows the progress."""

    story: Story
    data: Dataset
    folder: RunFolder
    screen: Screen


def float_key(job: Job, seed: int) -> str:
    """Returns what the float model of a seed depends on."""
    story, versions = job.story, job.folder.environment["versions"]
    sizes = len(job.data.train.labels), len(job.data.test.labels)
    return fingerprint(story.model, story.data, story.fit, story.error, story.metric, sizes, seed, versions)


def train_key(job: Job, method: Method, seed: int) -> str:
    """Returns what the model of a method depends on."""
    return fingerprint(float_key(job, seed), method, job.story.calibration_samples)


@functools.lru_cache(maxsize=8)
def float_model(job: Job, seed: int) -> Model:
    """Returns the float model of a seed, trained or read back."""
    story, name = job.story, f"seed-{seed}/{FLOAT}"
    model = story.model(seed)
    if story.fit is None:
        return model
    tree, _ = train(
        _float_loss(model.fn, story.error), {"params": model.params}, {"state": model.state}, job.data.train, story.fit,
        seed=seed, path=job.folder.piece(name) / "train.safetensors", key=float_key(job, seed), watch=_watch(job, name),
    )  # fmt: skip
    return model._replace(params=tree["params"])


def calibrated(job: Job, method: Method, seed: int, **options: Any) -> tuple[Any, Any, Any]:
    """Returns plan, parameters and quantizers' state: ranges measured, and trained where the method says so.

    Args:
        job: the job.
        method: rules, and how to train under them.
        seed: of the float model, and of what is trained.
        options: of `lowbit.bind`.
    """
    story, model, name = job.story, float_model(job, seed), f"seed-{seed}/{method.name}"
    images = job.data.train.images[: story.calibration_samples]
    size = min(len(images), 100)
    batches = [images[i : i + size] for i in range(0, len(images) - size + 1, size)]
    plan = lb.bind(model.fn, method.rules, model.params, model.state, jnp.asarray(batches[0][:1]), **options)
    bar = job.screen.start(f"{name} ranges", len(batches))
    pairs = [(model.state, x) for x in batches]
    qstate = lb.calibrate(model.fn, plan, model.params, pairs, key=jax.random.key(seed), progress=bar)
    if method.fit is None:
        return plan, model.params, qstate
    tree, rest = train(
        _quantized_loss(model.fn, plan, story.error),
        {"params": model.params, "learn": qstate["learn"]}, {"state": model.state, "fixed": qstate["fixed"]},
        job.data.train, method.fit,
        seed=seed, path=job.folder.piece(name) / "train.safetensors", key=train_key(job, method, seed), watch=_watch(job, name),
    )  # fmt: skip
    return plan, tree["params"], {"learn": tree["learn"], "fixed": rest["fixed"]}


def _watch(job: Job, name: str) -> Training:
    return Training(job.screen, name, lambda epoch, values: job.folder.log(name, "epoch", epoch=epoch, **values))


@functools.lru_cache(maxsize=8)
def _float_loss(fn: Callable[..., Any], error: Callable[..., Any]) -> Loss:
    def loss(tree, rest, x, labels, key, step):
        return error(fn(tree["params"], rest["state"], x), labels), rest

    return loss


@functools.lru_cache(maxsize=32)
def _quantized_loss(fn: Callable[..., Any], plan: Any, error: Callable[..., Any]) -> Loss:
    def loss(tree, rest, x, labels, key, step):
        qstate = {"learn": tree["learn"], "fixed": rest["fixed"]}
        simulated = lb.simulate(fn, plan, train=True)
        y, after = simulated(tree["params"], qstate, rest["state"], x, key=key, step=step)
        return error(y, labels), {"state": rest["state"], "fixed": after["fixed"]}

    return loss
