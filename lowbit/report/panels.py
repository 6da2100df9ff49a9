"""What the grid plots show: the values of weights and inputs beside the numbers their format can hold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowbit.core.paths import flatten
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Spec
from lowbit.core.statistics import Sample
from lowbit.core.tails import Ends, drawn
from lowbit.interpret.packing import pack
from lowbit.observe.observe import observe
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Row


class Panel(NamedTuple):
    """One histogram.

    Attributes:
        title: what is shown.
        note: the format, and how well it fits.
        values: a sample of the values, in the unit of ``levels``.
        levels: the numbers the format can hold, ascending.
        unit: label of the horizontal axis.
        noise: squared rounding error over squared value, of an input by a sample and the ends of its range.
    """

    title: str
    note: str
    values: np.ndarray
    levels: np.ndarray
    unit: str
    noise: float


class Seen(NamedTuple):
    """Values of an input.

    Attributes:
        sample: of all of them.
        values: the sample and the ends of the range, which it misses.
        weights: how many each of ``values`` stands for.
    """

    sample: np.ndarray
    values: np.ndarray
    weights: np.ndarray


def input_statistics(fn: Any, plan: Plan, params: Any, batches: Iterable[Any]) -> dict[tuple[str, str], Any]:
    """Returns a sample of every quantized input of the float model and the ends of its range, by operation path and role."""
    wanted = {
        row.path: {site.role: (Sample(), Ends()) for site in row.sites if site.spec is not None and not site.is_weight}
        for row in plan.rows
    }
    wanted = {path: roles for path, roles in wanted.items() if roles}
    if not wanted:
        return {}
    statistics = observe(fn, plan, params, batches, wanted)
    return {(path, role): statistics[path][role] for path, roles in wanted.items() for role in roles}


def format_levels(spec: Spec) -> np.ndarray:
    """Returns every level of the spec's format, ascending.

    Example:
        >>> from lowbit.formats.lookup import specs
        >>> format_levels(specs("w2")[0]).tolist()
        [-2.0, -1.0, 0.0, 1.0]
    """
    number = spec.format
    if number.is_integer:
        return np.arange(number.low, number.high + 1, dtype=np.float64)
    codes = np.arange(2**number.bits, dtype=np.uint8)
    levels = np.asarray(number.decode(codes), np.float64)  # pyright: ignore[reportArgumentType]
    return np.unique(levels[np.isfinite(levels)])


def panels(fn: Any, plan: Plan, params: Any, qstate: Any, batches: Sequence[Any], *, limit: int = 6) -> list[Panel]:
    """Returns the panels of the ``limit`` operations with most rounding noise, in program order: weight, then inputs.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`, with its quantizers.
        params: the parameters that are packed.
        qstate: their state.
        batches: argument tuples whose activations are shown.
        limit: how many operations.
    """
    qparams = pack(plan, params, qstate)
    statistics = input_statistics(fn, plan, params, batches)
    paths, leaves, _ = flatten(params)
    values = dict(zip(paths, leaves, strict=True))
    by_path = {row.path: _panels_of(row, qparams, values, statistics) for row in plan.quantized}
    by_noise = sorted(by_path, key=lambda path: -max((p.noise for p in by_path[path]), default=0.0))
    chosen = set(by_noise[:limit])
    return [panel for path, group in by_path.items() if path in chosen for panel in group]


def _panels_of(row: Row, qparams: QParams, values: Mapping[str, Any], statistics: Mapping[Any, Any]) -> list[Panel]:
    weights, shown = qparams.weights(), []
    for site in sorted(row.sites, key=lambda site: not site.is_weight):
        if site.spec is None:
            continue
        levels = format_levels(site.spec)
        if site.is_weight:
            q = weights[site.key]
            if site.kind != "leaf" or q.shape != tuple(np.shape(values[site.key])):
                continue
            scale, zero = _spread(q.scale_values, q), 0.0 if q.zero is None else _spread(q.zero, q)
            w = np.asarray(values[site.key], np.float64)
            shown.append(
                _panel(f"{row.path}: weight", site.spec, Seen(w, w, np.ones(())), scale, zero, levels, is_scaled=True)
            )
            continue
        state = qparams.sites[row.path][site.role]
        if np.size(state.get("scale", ())) != 1:
            continue  # dynamic, or one scale per channel or per layer: no single grid
        scale = float(np.asarray(state["scale"]).reshape(()))
        zero = float(np.asarray(state.get("zero", 0.0)).reshape(()))
        of_input = statistics[row.path, site.role]
        sample, *seen = (np.asarray(x, np.float64) for x in (of_input["sample"], *drawn(of_input)))
        shown.append(
            _panel(f"{row.path}: {site.role}", site.spec, Seen(sample, *seen), scale, zero, levels, is_scaled=False)
        )
    return shown


def _spread(scale: Any, q: QTensor) -> np.ndarray:
    """The scale of every element."""
    wide = np.asarray(scale, np.float64)
    for axis, (block, size) in enumerate(zip(q.blocks, q.shape, strict=True)):
        wide = np.take(np.repeat(wide, block, axis=axis), range(size), axis=axis)
    return wide


def _panel(title: str, spec: Spec, seen: Seen, scale: Any, zero: Any, levels: np.ndarray, *, is_scaled: bool) -> Panel:
    x, share = seen.values, seen.weights / np.sum(np.broadcast_to(seen.weights, seen.values.shape))
    steps = x / scale + zero
    at = np.clip(np.searchsorted((levels[1:] + levels[:-1]) / 2, steps), 0, len(levels) - 1)
    error = (levels[at] - steps) * scale
    power = float(np.sum(share * x**2))
    noise = float(np.sum(share * error**2)) / power if power else 0.0
    half_first, half_last = (levels[1] - levels[0]) / 2, (levels[-1] - levels[-2]) / 2
    clipped = float(np.sum(share * ((steps < levels[0] - half_first) | (steps > levels[-1] + half_last))))
    fit = f"{-10 * np.log10(noise):.0f} dB" if noise else "exact"
    note = f"{spec.format.name}/{spec.granularity.text}, {fit}, {_percent(clipped)} clipped"
    values = (steps - zero if is_scaled else seen.sample).reshape(-1)
    if is_scaled:  # an affine weight has one zero point per scale: steps from zero is what channels have in common
        shown = levels if np.ndim(zero) == 0 and not np.any(zero) else _reach(levels, zero)
        return Panel(title, note, values, shown, "value / step", noise)
    return Panel(title, note, values, (levels - zero) * scale, "value", noise)


def _reach(levels: np.ndarray, zero: Any) -> np.ndarray:
    return np.arange(levels[0] - np.max(zero), levels[-1] - np.min(zero) + 1)


def _percent(share: float) -> str:
    return "0 %" if share == 0 else "<0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
