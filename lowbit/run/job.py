"""What all pieces of one experiment have in common while it runs: data, folder, screen, keys, and where metrics go."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .experiment import Experiment
from .folder import RunFolder, plain
from .samples import Dataset, arguments, chosen, count
from .screen import Screen, Training


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One experiment with its data, its folder, and what shows the progress."""

    experiment: Experiment
    data: Dataset
    folder: RunFolder
    screen: Screen

    @functools.cached_property
    def train_digest(self) -> str:
        """Of the training samples."""
        return self.data.train.digest

    @functools.cached_property
    def test_digest(self) -> str:
        """Of the test samples."""
        return self.data.test.digest

    def log(self, name: str, kind: str, **values: Any) -> None:
        """Appends a line of a piece to the metrics, and gives it to the experiment's writers."""
        self.folder.log(name, kind, **values)
        for writer in self.experiment.writers:
            if writer in self.silent:
                continue
            try:
                writer(self.folder.path, {"piece": name, "kind": kind, **plain(values)})
            except Exception as error:  # noqa: BLE001 - a service may raise anything, and a training goes on without it
                self.silent.add(writer)
                said = f"{getattr(writer, '__name__', writer)} writes no more: {type(error).__name__}: {error}"
                self.screen.say(f"{said} (metrics.jsonl has every line)", style="yellow")

    def training(self, name: str, *, after: int = 0) -> Training:
        """Returns what a training of a piece tells: bars, and a line of metrics for every epoch, ``after`` so many before it."""

        def log(epoch: int, values: Any) -> None:
            self.log(name, "epoch", epoch=after + epoch, **values)

        return Training(self.screen, name, log, self.experiment.watch)

    @functools.cached_property
    def silent(self) -> set[Any]:
        """Writers that raised."""
        return set()

    @functools.cached_property
    def keys(self) -> dict[str, str]:
        """By piece, what its result depends on, as it was when first asked: a function that changes what it holds changes no run."""
        return {}

    @functools.cached_property
    def pieces(self) -> dict[str, Any]:
        """By method, finished pieces of the first seed that this process has made, for evals that take them together."""
        return {}


def calibration(job: Job) -> list[tuple[jax.Array, ...]]:
    """Returns the batches that set input ranges: arguments made of training inputs, without labels."""
    config = job.experiment
    inputs = job.data.train.taken(config.calibration_samples).inputs
    size = min(count(inputs), config.calibration_batch)
    batches = [chosen(inputs, slice(i, i + size)) for i in range(0, count(inputs) - size + 1, size)]
    return [tuple(jnp.asarray(x) for x in arguments(each)) for each in batches]


def score(job: Job, results: np.ndarray) -> float:
    """Returns the metric of outputs for the first test inputs."""
    assert job.experiment.metric is not None
    return float(job.experiment.metric.of(results, job.data.test.labels[: len(results)]))
