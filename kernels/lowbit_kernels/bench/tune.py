"""Times every configuration that an implementation proposes, checks its result, and writes the faster ones to a table."""

import functools
import pathlib

import jax
import numpy as np

from lowbit_kernels import quant_matmul, tuning
from lowbit_kernels.api import Activation, Weights, matmul_spec
from lowbit_kernels.bench.timing import interleave, ratio
from lowbit_kernels.cpu.prepare import PreparedMatrix, restore
from lowbit_kernels.implementations import select
from lowbit_kernels.matrix import dequantize_matrix

MARGIN = 1.03  # a configuration must be so many times faster than the heuristic to be written: less is noise


def tune(x: jax.Array, packed: Weights, activation: Activation, *, name: str | None, seconds: float) -> tuning.Table:
    """The table's entry for one call, or an empty table where the heuristic is not beaten by `MARGIN`.

    Args:
        x: `(M, K)`.
        packed: a packed or prepared matrix.
        activation: as in `quant_matmul`.
        name: of the implementation; None takes the first that runs.
        seconds: of measuring.

    Raises:
        RuntimeError: a configuration changes the result: by a bit of integer sums, or by more than the bound
            `4 eps sqrt(K) |x| @ |W|` of float ones.
    """
    spec = matmul_spec(x, packed, activation, None)
    chosen = select(spec, name)
    call = functools.partial(quant_matmul, activation=activation, implementation=chosen.name)
    calls, results = {}, {}
    for config in (None, *chosen.candidates(spec)):
        with tuning.using({}):
            jitted = jax.jit(functools.partial(call, config=config))
            results[config] = np.asarray(jitted(x, packed), np.float64)
        calls[config] = functools.partial(_timed, jitted, x, packed)
    for config, result in results.items():
        if not _is_same(results[None], result, x, packed, spec.activation):
            raise RuntimeError(
                f"{chosen.name} gives another result with {config}: a kernel is wrong, nothing was written"
            )
    times = interleave({str(config): each for config, each in calls.items()}, seconds=seconds)
    heuristic = times[str(None)]
    best = max(calls, key=lambda config: ratio(heuristic, times[str(config)]))
    gain = ratio(heuristic, times[str(best)])
    print(f"tune {tuning.key_of(chosen.name, spec).text}: {best} {gain:.2f}x the heuristic", flush=True)
    if best is None or gain < MARGIN:
        return {}
    return {tuning.key_of(chosen.name, spec).text: tuning.entry(best, times[str(best)].minimum, heuristic.minimum)}


def table_path(given: str | None) -> pathlib.Path:
    """Where the table goes: the file that is named, else the user's cache for this machine."""
    return pathlib.Path(given) if given else tuning.user_path(tuning.device_kind(jax.default_backend()))


def _timed(jitted, *args) -> object:
    return jitted(*args).block_until_ready()


def _is_same(expected: np.ndarray, got: np.ndarray, x: jax.Array, packed, kind: str) -> bool:
    if kind in ("dynamic", "static"):
        return np.array_equal(expected, got, equal_nan=True)
    weights = dequantize_matrix(restore(packed) if isinstance(packed, PreparedMatrix) else packed)
    size = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weights, np.float64))
    bound = 8 * np.finfo(np.float32).eps * np.sqrt(x.shape[1]) * size  # either side is half of it from the exact sum
    return bool((np.abs(expected - got) <= bound).all())
