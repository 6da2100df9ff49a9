"""Samples of a data set: in memory, or one by one out of a grain source where they do not fit."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from lowbit.core.kept import digest

Inputs = np.ndarray | tuple[np.ndarray, ...]
"""Of samples, ``[batch, ...]``: one array, or one for each argument of a network that takes several."""


def arguments(inputs: Any) -> tuple[Any, ...]:
    """Returns inputs as the arguments that a network takes behind parameters and state."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def chosen(inputs: Inputs, index: Any) -> Inputs:
    """Returns the samples of an index or a slice.

    Example:
        >>> chosen((np.array([1, 2, 3]), np.array([4, 5, 6])), slice(2))
        (array([1, 2]), array([4, 5]))
    """
    return tuple(each[index] for each in inputs) if isinstance(inputs, tuple) else inputs[index]


def count(inputs: Inputs) -> int:
    """Returns the number of samples."""
    return len(arguments(inputs)[0])


class Samples(Protocol):
    """What trainings and calibration read."""

    @property
    def size(self) -> int:
        """The number of samples."""
        ...

    @property
    def digest(self) -> str:
        """What stands for their content: pieces are known by it."""
        ...

    def first(self, count: int | None) -> "Samples":
        """The first ``count`` samples, or all if there are fewer, or for None."""
        ...

    def taken(self, count: int) -> "Split":
        """The first ``count`` samples in memory."""
        ...

    def batches(self, order: np.ndarray, batch: int) -> Iterator[tuple[Inputs, np.ndarray]]:
        """Inputs and labels ``[batch, ...]`` of the samples ``order`` one after the other; a last short batch is left out."""
        ...


class Split(NamedTuple):
    """Inputs ``[batch, ...]``, mostly in float32, and their labels ``[batch, ...]``, of whatever kind the loss and the metric take.

    A network that takes several arguments has a tuple of inputs: they are `Inputs`, and whoever made them knows which.
    """

    inputs: Any
    labels: np.ndarray

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Of every bit."""
        return digest(tuple(self))

    def first(self, count: int | None) -> "Split":
        """Returns the first ``count`` samples, or all if there are fewer, or for None."""
        return Split(chosen(self.inputs, slice(count)), self.labels[:count])

    def taken(self, count: int) -> "Split":
        """Returns the first ``count`` samples."""
        return self.first(count)

    def batches(self, order: np.ndarray, batch: int) -> Iterator[tuple[Inputs, np.ndarray]]:
        """Gives inputs and labels of ``batch`` samples of ``order`` at a time."""
        for ids in _full(order, batch):
            yield chosen(self.inputs, ids), self.labels[ids]


@dataclasses.dataclass(frozen=True)
class _Ordered:
    """A source in another order."""

    source: Any
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        sample = self.source[int(self.order[index])]
        if not isinstance(sample, tuple) or len(sample) != 2:
            raise ValueError(f"a sample is a pair (input, label), got {type(sample).__name__}: map the source to pairs")
        return np.asarray(sample[0]), np.asarray(sample[1])


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Samples of a grain source; see `from_grain`."""

    source: Any
    digest: str
    workers: int
    size: int

    def first(self, count: int | None) -> "Streamed":
        """Returns the first ``count`` samples, or all if there are fewer, or for None."""
        return self if count is None else dataclasses.replace(self, size=min(self.size, count))

    def taken(self, count: int) -> Split:
        """Returns the first ``count`` samples in memory."""
        some = min(self.size, count)
        return Split(*next(self.batches(np.arange(some), some)))

    def batches(self, order: np.ndarray, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Gives inputs and labels of ``batch`` samples of ``order`` at a time, read ahead by the source's threads."""
        import grain

        read = grain.ReadOptions(num_threads=self.workers, prefetch_buffer_size=max(2 * self.workers, batch))
        samples = grain.MapDataset.source(_Ordered(self.source, order)).to_iter_dataset(read)
        yield from samples.batch(batch, drop_remainder=True)


def from_grain(source: Any, *, digest: str, workers: int = 8) -> Streamed:
    """Returns samples that are read when they are needed, for `Dataset.train`.

    The order of an epoch is drawn as it is for samples in memory: the same samples train the same bits.

    Args:
        source: with ``len(source)`` and ``source[i] -> (input, label)``: a `grain.MapDataset`, or anything that grain
            takes as a random access source.
        digest: what the samples are, such as a version or a hash of their files: pieces are known by it.
        workers: threads that read ahead.

    Raises:
        ImportError: naming the extra, if grain is not installed.
        TypeError: if the source has no length, or cannot be indexed.
        ValueError: if it is empty, or ``digest`` is.
    """
    try:
        import grain  # noqa: F401
    except ImportError as error:
        raise ImportError("samples of a grain source need it: pip install 'lowbit[grain]'") from error
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise TypeError(
            f"a source has len(source) and source[i], got {type(source).__name__}: orders are drawn by index"
        )
    if not len(source) or not digest:
        raise ValueError(f"a source needs samples and a digest, got {len(source)} and {digest!r}")
    return Streamed(source, digest, workers, len(source))


def _full(order: Sequence[int] | np.ndarray, batch: int) -> Iterator[Any]:
    for start in range(0, len(order) - batch + 1, batch):
        yield order[start : start + batch]


class Dataset(NamedTuple):
    """A data set: its splits, and one line that says where the files came from.

    Attributes:
        name: of the data set.
        source: where the files came from.
        train: a `Split`, or what `from_grain` returns.
        test: in memory: every piece is measured on all of it.
    """

    name: str
    source: str
    train: Samples
    test: Split


def unlabelled(name: str, inputs: Inputs, *, source: str = "made up", calibrated: int | None = None) -> Dataset:
    """Returns a data set without labels, for an experiment without a metric.

    Args:
        name: of the data set.
        inputs: ``[batch, ...]``, or a tuple of such: what is measured.
        source: where they came from.
        calibrated: of them, the first that set input ranges; None: all.
    """
    labels = np.zeros(count(inputs), np.int32)
    return Dataset(name, source, Split(inputs, labels).first(calibrated), Split(inputs, labels))
