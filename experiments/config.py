"""What a config file holds: frozen, typed data. One file is one experiment; variation is a value, never a fork."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

import lowbit as lb
from experiments.data.dataset import Dataset
from experiments.models.model import Model
from lowbit.plan.rows import Plan

Penalty = Callable[[Plan, Any, Any], jax.Array]
"""``penalty(plan, params, qstate)``: a scalar that is added to the training loss."""

Around = Callable[[optax.GradientTransformation, int], optax.GradientTransformation]
"""``around(optimizer, steps)``: an optimizer made of another, for so many steps."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """One training run: Adam, a cosine schedule down to zero.

    Attributes:
        epochs: passes over the training images.
        batch: images per step; a last short batch is left out.
        lr: learning rate of the parameters.
        step_lr: learning rate of the quantizers' own learned leaves, such as LSQ's step sizes.
        step_decay: L2 penalty on them, as the gradient sees it: PACT's clip shrinks by it alone.
    """

    epochs: int = 3
    batch: int = 128
    lr: float = 1e-3
    step_lr: float = 1e-3
    step_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: the row's name and its folder's.
        rules: what `lowbit.bind` takes: glob over operation paths -> rule text or quantizers.
        fit: quantization-aware training from the float parameters, or None: post-training, ranges measured only.
        penalty: ``penalty(plan, params, qstate)`` is added to the loss, or None.
        around: ``around(optimizer, steps)`` is the parameters' optimizer, one that leads them to the grid by itself, or
            None. The float function is trained with it, and ranges are measured afterwards.
        freeze_norms: fold batch norms into the weights before these are quantized (`lowbit.rewrites.batch_norm`), in
            training with correction up to this step, then with frozen statistics; None leaves them as they are.
    """

    name: str
    rules: Mapping[str, str | lb.Quantizers]
    fit: Fit | None = None
    penalty: Penalty | None = None
    around: Around | None = None
    freeze_norms: int | None = None

    def __post_init__(self):
        if self.freeze_norms is not None and (self.freeze_norms < 0 or self.fit is None or self.around):
            raise ValueError(f"{self.name}: freeze_norms is a step >= 0 of quantized training, got {self.freeze_norms}")
        if self.fit is None and (self.penalty or self.around):
            raise ValueError(f"{self.name}: penalty and around are for training; give it a fit")
        if self.penalty and self.around:
            raise ValueError(f"{self.name}: penalty needs quantized training and around is without: give one of them")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
        name: of the run's folder.
        data: returns the data set.
        model: returns the network for a seed.
        predict: outputs -> predicted labels, in numpy.
        methods: what is compared; the float model is always the first row.
        fit: how the float model is trained, or None where `model` returns a trained one.
        seeds: one whole repetition each.
        train_images: at most this many images for training.
        test_images: at most this many images for accuracy.
        test_batch: images per call where accuracy is measured.
        calibration_images: training images, without labels, that set input ranges.
        edge_images: test images that the compiled module is run on; 0 leaves the edge compiler out.
        edge_batch: images per call of the exported module.
        latency_batch: images per call where time is measured.
        latency_rounds: calls per method, interleaved; 0 measures none.
    """

    name: str
    data: Callable[[], Dataset]
    model: Callable[[int], Model]
    predict: Callable[[np.ndarray], np.ndarray]
    methods: tuple[Method, ...]
    fit: Fit | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    train_images: int = 60_000
    test_images: int = 10_000
    test_batch: int = 500
    calibration_images: int = 1_000
    edge_images: int = 1_000
    edge_batch: int = 1
    latency_batch: int = 1
    latency_rounds: int = 50

    def __post_init__(self):
        names = [FLOAT, *(method.name for method in self.methods)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"methods: the name {twice[0]!r} is taken twice ({FLOAT!r} is the float row's)")
        if odd := next((name for name in (self.name, *names) if not name.replace("-", "_").isidentifier()), None):
            raise ValueError(f"names become folders: use letters, digits, _ and - only, got {odd!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct integers from 0, at least one, got {self.seeds}")
        for name in ("train_images", "test_images", "test_batch", "calibration_images", "edge_batch", "latency_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("edge_images", "latency_rounds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for owner, fit in (("fit", self.fit), *((f"methods.{m.name}.fit", m.fit) for m in self.methods)):
            if fit is not None and (fit.epochs < 1 or fit.batch < 1):
                raise ValueError(f"{owner}: epochs and batch must be at least 1, got {fit.epochs} and {fit.batch}")


FLOAT = "float"
"""The name of the first row: every operation left as it is."""


@functools.singledispatch
def plain(value: Any) -> Any:
    """Returns ``value`` as JSON data: functions by name, quantizers by their text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    return repr(value)


@plain.register
def _(value: lb.Quantizer) -> str:
    return value.text


def fingerprint(*parts: Any) -> str:
    """Returns a short name of a value that changes with anything in it."""
    text = json.dumps([plain(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
