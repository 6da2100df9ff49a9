"""Interleaved timing: every contestant once a round, so that a busy moment of the machine falls on all of them."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

REST = 0.1
"""Seconds before a turn. ONNX Runtime's threads spin for some 50 ms after a call; on two cores whoever comes next has one
core: the 4-bit matmul of one row takes 0.21 ms right after it, 0.10 ms once they sleep."""


class Times(NamedTuple):
    """Milliseconds of one contestant."""

    minimum: float
    median: float
    rounds: tuple[float, ...]


def interleave(
    contestants: dict[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    least: int = 7,
    most: int = 200,
    rest: float = REST,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Times]:
    """Times of each contestant over rounds in which every one runs once; each must block until it is done.

    Five warm-up calls each, the first of which compiles; fewer, at least two, where those after it take a second. Then rounds
    until `seconds` are over (at least `least`) or `most` rounds. A turn is a rest, one call that is not timed, which brings the
    contestant's own weights back into the caches that the one before it filled, and then calls for 5 ms, at most 40: a clock
    read and a thread wake-up weigh little.

    Args:
        contestants: by name.
        seconds: of all rounds together.
        least: rounds.
        most: rounds.
        rest: seconds of sleep before a turn, in which the threads of the one before fall asleep.
        progress: told how many rounds are done.
    """
    repeats = {}
    for name, call in contestants.items():
        once, spent = float("inf"), 0.0
        for index in range(5):
            start = time.perf_counter()
            call()
            took = time.perf_counter() - start
            once, spent = min(once, took), spent + (took if index else 0.0)
            if spent > 1.0:
                break
        repeats[name] = max(1, min(40, int(5e-3 / max(once, 1e-7))))
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    for index in range(most):
        if index >= least and time.perf_counter() > end:
            break
        for name, call in contestants.items():
            time.sleep(rest)
            call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            rounds[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
        if progress is not None:
            progress(index + 1)
    return {name: Times(min(t), float(np.median(t)), tuple(t)) for name, t in rounds.items()}


def ratio(slow: Times, fast: Times) -> float:
    """Median over rounds of slow / fast, both measured in the same round."""
    return float(np.median(np.asarray(slow.rounds) / np.asarray(fast.rounds)))
