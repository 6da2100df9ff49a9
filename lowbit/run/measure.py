"""What is measured of a model: outputs, accuracy, differences, latency, memory."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")


def outputs(call: Callable[[np.ndarray], Any], inputs: np.ndarray, batch: int) -> np.ndarray:
    """Returns ``call``'s outputs on all inputs, ``batch`` at a time; a short last batch is filled up and cut."""
    found = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        full = part if len(part) == batch else np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        found.append(np.asarray(call(full))[: len(part)])
    return np.concatenate(found)


def difference(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Returns the largest absolute difference, and the share of values that are not the same bits."""
    gap = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return {"max": float(gap.max(initial=0.0)), "share": float(np.mean(left != right)) if left.size else 0.0}


def latencies(
    calls: Mapping[str, Callable[[], Any]], rounds: int, *, progress: Callable[[int], None] | None = None
) -> dict[str, dict[str, float]]:
    """Returns minimum and median milliseconds of every call.

    The calls take turns, so that a slow spell of the machine hits all of them; each turn runs a call twice and keeps
    the second, whose weights are then in cache as they would be in service.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for turn in range(rounds):
        for name, call in calls.items():
            jax.block_until_ready(call())
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - start))
        if progress is not None:
            progress(turn + 1)
    return {
        name: {"min": round(min(values), 4), "median": round(float(np.median(values)), 4)}
        for name, values in times.items()
        if values
    }


def peak_memory(call: Callable[[], T]) -> tuple[T, int]:
    """Returns what ``call`` returns, and the bytes by which this process's resident memory rose while it ran, at most.

    Raises:
        OSError: where the system is not Linux, which alone counts this.
    """

    def resident(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return 1024 * int(found[1])

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    result = call()
    return result, resident("VmHWM") - before
