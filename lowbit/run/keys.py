"""What a piece is known by: a text of what is asked for, and a text of the code of lowbit that does it, with a point between.

A piece whose second half is another is of another lowbit: it is done again, or taken where stale pieces are accepted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from lowbit.recipes.lookup import named

from .environment import NUMERIC
from .evals.column import Eval
from .experiment import Method
from .identity import fingerprint, joined, modules_of, numerics, reached
from .job import Job

_DRIVER = "lowbit.recipes.quantize"
"""What runs every recipe."""


def name_of(method: Method, seed: int) -> str:
    """Returns the name of a piece's folder."""
    return f"seed-{seed}/{method.name}"


def key_of(job: Job, method: Method, seed: int) -> str:
    """Returns what the result of a piece depends on."""
    name = name_of(method, seed)
    if name not in job.keys:
        job.keys[name] = _key_of(job, method, seed)
    return job.keys[name]


def _key_of(job: Job, method: Method, seed: int) -> str:
    config = job.experiment
    evals = [eval_key(each) for each in config.evals if each.is_of(method.name) and not each.is_together]
    return joined([train_key(job, method, seed), *evals], config.metric, config.test_batch, job.test_digest)


def float_key(job: Job, seed: int) -> str:
    """Returns what the float model of a seed depends on."""
    config, versions = job.experiment, job.folder.environment["versions"]
    fitted = (config.fit, config.loss, job.train_digest) if config.fit else ()
    asked = fingerprint(config.model, fitted, seed, {name: versions[name] for name in NUMERIC})
    return f"{asked}.{numerics(modules_of((config.model, config.loss)))}"


def train_key(job: Job, method: Method, seed: int) -> str:
    """Returns what the model of a method depends on, before anything is measured."""
    config, recipe = job.experiment, named(method.recipe) if isinstance(method.recipe, str) else method.recipe
    what = dataclasses.replace(method, name="-", recipe=recipe)  # what is done, whatever it is called
    folders, modules = [name for name, used in _FOLDERS if used(method)], modules_of(what)
    if recipe is not None:  # the modules of this one, not of all of them
        modules |= reached([*modules_of(recipe), _DRIVER])
    asked = fingerprint(what, config.calibration_samples, config.calibration_batch, job.train_digest, config.loss)
    return joined([float_key(job, seed), f"{asked}.{numerics(modules, folders)}"])


_FOLDERS: tuple[tuple[str, Callable[[Method], Any]], ...] = (
    ("allocate", lambda m: m.allocate),
    ("rewrites", lambda m: m.rewrites or m.freeze_norms is not None),
)
"""Folders of lowbit whose code a method goes through, where it does."""


def eval_key(asked: Eval) -> str:
    """Returns what the numbers of an eval depend on besides its pieces."""
    code = numerics(modules_of(asked.measure), asked.folders)
    return f"{fingerprint(asked.name, asked.measure, asked.depends and asked.depends())}.{code}"
