"""What an edge story is: real data, a float model, full-integer plans of it, and a device. Frozen, typed data."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import FLOAT, Fit, Method
from experiments.data.dataset import Dataset
from experiments.models.model import Model


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is measured of outputs.

    Attributes:
        name: with its unit, the head of a column.
        of: ``of(outputs, labels)``, in numpy.
        digits: that are printed.
    """

    name: str
    of: Callable[[np.ndarray, np.ndarray], float]
    digits: int = 2


@dataclasses.dataclass(frozen=True)
class Story:
    """One edge story.

    Attributes:
        name: of the run's folder.
        data: returns the data set.
        model: returns the network for a seed; one output.
        metric: what is measured.
        methods: full-integer plans; the float model is always the first row.
        error: ``error(outputs, labels)``, the training loss; None where nothing is trained.
        fit: how the float model is trained, or None where `model` returns a trained one.
        baseline: name of a forecast or guess without a model, and ``outputs`` of it for the test inputs; or None.
        device: a target that `lowbit.export.runners` runs.
        device_samples: test samples that the device runs; 0 runs all.
        seeds: one whole repetition each.
        test_batch: samples per call off the device.
        calibration_samples: training samples, without labels, that set ranges.
        latency_rounds: calls per model where IREE's time is measured; 0 measures no time at all.
    """

    name: str
    data: Callable[[], Dataset]
    model: Callable[[int], Model]
    metric: Metric
    methods: tuple[Method, ...]
    error: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    fit: Fit | None = None
    baseline: tuple[str, Callable[[np.ndarray], np.ndarray]] | None = None
    device: str = "cortex-m4"
    device_samples: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    test_batch: int = 500
    calibration_samples: int = 1_000
    latency_rounds: int = 200

    def __post_init__(self):
        names = [FLOAT, *(method.name for method in self.methods)]
        if len(set(names)) != len(names):
            raise ValueError(f"methods: names must differ, and from {FLOAT!r}, got {', '.join(names[1:])}")
        if any(method.penalty or method.around or method.freeze_norms is not None for method in self.methods):
            raise ValueError("methods: a story takes rules and fit only; use experiments.config.Config for the rest")
        if self.error is None and any(fit is not None for fit in (self.fit, *(method.fit for method in self.methods))):
            raise ValueError("error: a fit needs a training loss, such as experiments.story.cross_entropy")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct integers from 0, at least one, got {self.seeds}")
        for name in ("test_batch", "calibration_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("device_samples", "latency_rounds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of classes."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def absolute_error(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the mean absolute error."""
    return jnp.mean(jnp.abs(found - wanted))


def accuracy(found: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of samples, in percent, whose largest output is that of their class."""
    return 100 * float(np.mean(found.argmax(axis=-1) == labels))
