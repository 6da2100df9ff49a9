"""What is measured of a model: outputs, accuracy, differences, latency."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def outputs(call: Callable[[np.ndarray], Any], images: np.ndarray, batch: int) -> np.ndarray:
    """Returns ``call``'s outputs on all images, ``batch`` at a time; a short last batch is filled up and cut."""
    found = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
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
