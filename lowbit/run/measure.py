"""What is measured of a model: outputs, accuracy, differences, latency, memory."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

import lowbit_kernels
from lowbit_kernels.bench import timing
from lowbit_kernels.bench.timing import Times as Times
from lowbit_kernels.bench.timing import ratio as ratio

from .samples import Inputs, arguments, chosen, count

T = TypeVar("T")
REST = timing.REST
"""Seconds before a turn; see there."""


def outputs(call: Callable[..., Any], inputs: Inputs, batch: int) -> np.ndarray:
    """Returns ``call``'s outputs on all inputs, ``batch`` at a time; a short last batch is filled up and cut.

    Args:
        call: ``call(*arguments) -> outputs``.
        inputs: ``[samples, ...]``, or a tuple of such, one for each argument.
        batch: samples of a call.
    """
    batches, size = [], count(inputs)
    for start in range(0, size, batch):
        taken = np.minimum(np.arange(start, start + batch), size - 1)
        batches.append(np.asarray(call(*arguments(chosen(inputs, taken))))[: size - start])
    return np.concatenate(batches)


def difference(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Returns the largest absolute difference, and the share of values that are not the same bits."""
    gap = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return {"max": float(gap.max(initial=0.0)), "share": float(np.mean(left != right)) if left.size else 0.0}


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    least: int = 7,
    most: int = 200,
    rest: float = timing.REST,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Times]:
    """Returns times of every call, in milliseconds: `lowbit_kernels.bench.timing.interleave`, of calls that need not block."""
    blocking = {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}
    return timing.interleave(blocking, seconds=seconds, least=least, most=most, rest=rest, progress=progress)


def kept(times: Times) -> dict[str, float]:
    """Returns what is kept of the times of a call: the least and the median in milliseconds, and of how many rounds."""
    return {"min": round(times.minimum, 6), "median": round(times.median, 6), "rounds": len(times.rounds)}


def instruction_set() -> str | None:
    """Returns the instructions that the native kernels use here, such as ``avx512vnni``; None where there are no such kernels."""
    return next(iter(lowbit_kernels.status().isas), None)


def peak_memory(call: Callable[[], T]) -> tuple[T, int]:
    """Returns what ``call`` returns, and the bytes by which this process's resident memory rose while it ran, at most.

    Raises:
        OSError: where the system is not Linux, which alone counts this.
    """

    def resident(name: str) -> int:
        match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert match is not None
        return 1024 * int(match[1])

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    result = call()
    return result, resident("VmHWM") - before
