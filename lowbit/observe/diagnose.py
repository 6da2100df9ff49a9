"""`diagnose`: where quantization loses, operation by operation, alone and with all that precedes."""

import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.core.aligned import aligned
from lowbit.core.blocks import join, split, spread
from lowbit.core.keywords import check_keywords
from lowbit.core.metrics import decibels
from lowbit.core.paths import flatten
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import rounded_product
from lowbit.core.statistics import NotFinite
from lowbit.interpret import observe as walk
from lowbit.interpret.codes import checked_codes
from lowbit.interpret.execute import explain
from lowbit.interpret.interpretation import interpretation_of
from lowbit.interpret.observe import OUTPUT, Watch
from lowbit.interpret.packing import pack
from lowbit.interpret.state import QState, check_state
from lowbit.interpret.trace import Model, trace_planned
from lowbit.packed import arguments
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Row

from .besides import Captured
from .fold import fold
from .noise import Beyond, Noise
from .resumed import Resumed


@dataclasses.dataclass(frozen=True)
class Finding:
    """What quantization does to one operation. Ratios of signal to noise are in decibels, ``10 log10(|x|^2 / |x - q|^2)``.

    NaN stands where there is nothing to say: an operand in float, or an operation in a loop that is not over layers.

    Attributes:
        path: of the operation.
        rule: the specs of its operands.
        weight: signal to noise of the weight.
        input: of the input (of two activations the worse), this operation quantized alone.
        output: of the result, this operation quantized alone.
        input_accumulated: of the input on its grid, everything before it quantized.
        output_accumulated: of the result, everything before it quantized.
        clipped: the share of input values beyond the grid.
        weight_clipped: the share of weights that are more than half a step away.
        levels: different codes in the weight; of several matrices, in the one with the fewest.
        bits: of the weight, per element, scales and zero points included.
        kernel: what `lowbit.execute` runs it on.
    """

    path: str
    rule: str
    weight: float = math.nan
    input: float = math.nan
    output: float = math.nan
    input_accumulated: float = math.nan
    output_accumulated: float = math.nan
    clipped: float = math.nan
    weight_clipped: float = math.nan
    levels: int = 0
    bits: float = math.nan
    kernel: str = ""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """A finding per quantized operation, in program order; prints as a table."""

    findings: tuple[Finding, ...]

    def __getitem__(self, path: str) -> Finding:
        return next(f for f in self.findings if f.path == path)

    def json(self) -> str:
        """Returns the findings as JSON; NaN and infinity are null."""

        def plain(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return json.dumps(
            [{k: plain(v) for k, v in dataclasses.asdict(f).items()} for f in self.findings], allow_nan=False
        )

    def __str__(self) -> str:
        head = [
            "operation",
            "rule",
            "weight",
            "input",
            "output",
            "in acc.",
            "out acc.",
            "clipped",
            "levels",
            "bits",
            "kernel",
        ]
        lines = [head, *(_cells(f) for f in self.findings)]
        return "\n".join(aligned(lines, (0, 1, len(head) - 1)))


def _cells(f: Finding) -> list[str]:
    ratios = (f.weight, f.input, f.output, f.input_accumulated, f.output_accumulated)
    numbers = ["-" if math.isnan(x) else "exact" if math.isinf(x) else f"{x:.1f} dB" for x in ratios]
    clipped = "-" if math.isnan(f.clipped) else f"{100 * f.clipped:.2f} %"
    return [
        f.path,
        f.rule,
        *numbers,
        clipped,
        str(f.levels or "-"),
        "-" if math.isnan(f.bits) else f"{f.bits:.2f}",
        f.kernel,
    ]


def diagnose(
    fn: Model,
    plan: Plan,
    params: Any,
    qstate: QState,
    batches: Iterable[Any],
    *,
    codes: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    cache: str | Path | None = None,
) -> Diagnosis:
    """Returns a row per quantized operation: what it loses alone, and with everything before it quantized.

    Alone: its operands are those of the float model, put on their grids. Accumulated: as `lowbit.simulate` computes. Results
    of a full-integer plan are on their own grids, with the bias, relu and clips that the operation absorbs, beside the float
    value of the same. Warns of a weight that has one level only. ``print`` shows a table; ``.json()``;
    `lowbit.report.figures.diagnosis` a plot.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`.
        params: float parameters.
        qstate: from `lowbit.init`, `lowbit.calibrate` or training.
        batches: argument tuples; all operands of one batch are in memory at a time.
        codes: of weights, as a solver chose them (`lowbit.pack`), in place of the nearest.
        kwargs: keyword arguments of ``fn``.
        progress: called with the number of batches done.
        cache: a folder where states are kept: every 8 batches, and when all are done. A pass that was killed goes on there,
            one that is repeated costs its first batch; batches must then be the same ones in the same order. Outside `jax.jit`.

    Raises:
        ValueError: for a plan without a quantized operation, a state of another plan, no batch, or NaN.
        TypeError: if a batch is not a tuple of arguments.
    """
    arguments.check(fn=fn, plan=plan, params=params, qstate=qstate, kwargs=kwargs, progress=progress)
    check_state(plan, qstate)
    arguments.check_leaves(plan, params)
    if kwargs is not None:
        check_keywords("lowbit.diagnose", None, ("kwargs",), {"kwargs": kwargs})
    if not plan.quantized:
        raise ValueError("plan must have a quantized operation: its rules leave all of them in float, or it has none")
    chosen = checked_codes(plan, codes)
    qparams = pack(plan, params, qstate, chosen)
    first: list[Any] = []

    def step(states: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if not first:
            first.append((args, keywords))
        sums = _stepper(fn, plan)(params, qstate, qparams.sites, args, keywords, chosen)
        return sums if states is None else jax.tree.map(_joined, states, sums)

    resumed = Resumed(cache, f"diagnose {plan.fingerprint}", (params, qstate, qparams))
    states = fold(step, fn, params, batches, kwargs, progress, resumed=resumed)
    totals = jax.device_get(states)
    if not any(np.any(totals[row.path][OUTPUT]["not_finite"][1]) for row in plan.quantized):
        raise ValueError("batches hold no data: every batch was empty, or no quantized operation was computed")
    args, keywords = first[0]
    kernels = _kernels(plan, explain(fn, plan, qparams, *args, kwargs=keywords))
    weights = _weights(plan, params, qparams)
    findings = tuple(_finding(row, totals, weights.get(row.path), kernels.get(row.path, "")) for row in plan.quantized)
    flat = [f.path for f in findings if f.levels == 1]
    if flat:
        warnings.warn(
            f"{', '.join(flat)}: every weight of a matrix has the same level: nothing is left of it", stacklevel=2
        )
    return Diagnosis(findings)


def _kernels(plan: Plan, lines: str) -> dict[str, str]:
    """What runs every operation, out of what `lowbit.explain` says."""
    by_path = {}
    for line in lines.splitlines():
        for row in plan.quantized:
            if line.startswith(f"{row.path} "):
                by_path[row.path] = line[len(row.path) :].split()[0]
    return by_path


def _joined(before: Array, now: Array) -> Array:
    return before | now if before.dtype == jnp.bool_ else before + now


def _watches(plan: Plan) -> list[Watch]:
    """What is looked at: all float operands and results, those that are quantized, and those that a grid may clip."""
    captured: dict[str, dict[str, Any]] = {}
    noisy: dict[str, dict[str, Any]] = {}
    clipped: dict[str, dict[str, Any]] = {}
    for row in plan.quantized:
        for site in row.sites:
            is_index = row.primitive == "gather" and not site.is_weight
            if site.kind != "leaf" and not is_index:
                captured.setdefault(row.path, {})[site.role] = (Captured(),)
                if site.spec is not None:
                    noisy.setdefault(row.path, {})[site.role] = (Noise(), NotFinite())
            if site.spec is not None and not site.is_weight and not site.spec.dynamic and not site.own_code:
                clipped.setdefault(row.path, {})[site.role] = (Beyond(),)
        for wanted, statistics in ((captured, (Captured(),)), (noisy, (Noise(), NotFinite()))):
            wanted.setdefault(row.path, {})[OUTPUT] = statistics
    return [Watch.of(each) for each in (captured, noisy, clipped)]


@functools.lru_cache(maxsize=64)
def _stepper(fn: Model, plan: Plan) -> Callable[..., Any]:
    """Returns ``(params, qstate, served inputs, args, kwargs, codes) -> {path: {role: {name: state}}}`` of one batch."""
    captured, noisy, clipped = _watches(plan)
    interpretation = interpretation_of(plan)

    @jax.jit
    def step(params, qstate, served, args, kwargs, codes):
        traced = trace_planned(fn, plan, params, args, dict(kwargs))
        beside: dict[str, Any] = {}
        turns: dict[str, Any] = {}
        if "float" in interpretation.beside:
            floats = walk.observation(plan, traced, captured, walk.empty(captured, plan, traced))
            for path, roles in floats.items():
                beside[path] = {role: {"float": each["captured"][0]} for role, each in roles.items()}
                turns[path] = {role: jnp.max(each["captured"][1]) for role, each in roles.items()}
        for path, role, _ in clipped.places:
            ends = _ends(plan[path], role, served)
            beside.setdefault(path, {}).setdefault(role, {})["ends"] = ends

        def seen(watch: Watch, *, is_alone: bool) -> Any:
            given = {"qstate": qstate, "codes": codes, "floats": traced, "beside": beside, "is_alone": is_alone}
            return interpretation.observed(plan, traced, watch, walk.empty(watch, plan, traced), **given)

        looks = seen(noisy, is_alone=False), seen(noisy, is_alone=True), seen(clipped, is_alone=True)
        return _state_of(noisy, *looks, turns)

    return step


def _state_of(watch: Watch, accumulated: Any, alone: Any, beyond: Any, turns: Mapping[str, Any]) -> dict[str, Any]:
    """The state of every place after one batch; ``turns`` where there may be more than one."""
    by_path: dict[str, Any] = {}
    for path, role, _ in watch.places:
        by_path.setdefault(path, {})[role] = {
            "alone": alone[path][role]["noise"],
            "accumulated": accumulated[path][role]["noise"],
            "beyond": beyond.get(path, {}).get(role, {}).get("beyond", jnp.zeros(2, jnp.float32)),
            "turns": turns.get(path, {}).get(role, jnp.ones((), jnp.int32)),
            "batches": jnp.ones((), jnp.int32),
            "not_finite": alone[path][role]["not_finite"],
        }
    return by_path


def _ends(row: Row, role: str, served: Mapping[str, Any]) -> Array:
    """Where the values of an input begin to be clipped, layer by layer: ``[*layers, 2]``."""
    site = next(site for site in row.sites if site.role == role)
    assert site.spec is not None
    numbers, grid = site.spec.format, served[site.key] if site.kind == "grid" else served[row.path][role]
    scale = grid["scale"].astype(jnp.float32).reshape(row.stack)
    zero = grid["zero"].astype(jnp.float32).reshape(row.stack) if "zero" in grid else jnp.zeros_like(scale)
    low, high = (rounded_product(end - zero, scale) for end in (numbers.low - 0.5, numbers.high + 0.5))
    return jnp.stack([low, high], axis=-1)


def _decibels(sums: Any) -> float:
    signal, noise = (float(x) for x in np.asarray(sums, np.float64).reshape(-1, 2).sum(0))
    return decibels(signal, noise)


def _finding(row: Row, states: Mapping[str, Any], weight: Mapping[str, Any] | None, kernel: str) -> Finding:
    roles = states[row.path]
    is_once = all(each["turns"] <= each["batches"] for each in roles.values())
    inputs = [each for role, each in roles.items() if role not in (OUTPUT, "weight")]

    def worst(name: str) -> float:
        return min((_decibels(each[name]) for each in inputs), default=math.nan) if is_once else math.nan

    counts = np.sum([np.asarray(each["beyond"], np.float64).reshape(-1, 2).sum(0) for each in inputs], axis=0)
    of_weight = dict(weight or {})
    if "weight" in roles and is_once:
        of_weight["weight"] = _decibels(roles["weight"]["accumulated"])
    return Finding(
        row.path,
        ", ".join(site.spec.text for site in row.sites if site.spec is not None),
        input=worst("alone"),
        output=_decibels(roles[OUTPUT]["alone"]) if is_once else math.nan,
        input_accumulated=worst("accumulated"),
        output_accumulated=_decibels(roles[OUTPUT]["accumulated"]) if is_once else math.nan,
        clipped=float(counts[0] / counts[1]) if inputs and counts[1] else math.nan,
        kernel=kernel,
        **of_weight,
    )


def _weights(plan: Plan, params: Any, qparams: QParams) -> dict[str, dict[str, Any]]:
    """Of every operation with a quantized weight, what the weight alone says."""
    packed, leaves, by_path = qparams.weights(), dict(zip(*flatten(params)[:2], strict=True)), {}
    for row in plan.quantized:
        site = row.weight
        if site is None or site.spec is None:
            continue
        q = packed[site.key]
        codes = np.asarray(row.matrix.matrices(q.unpacked_codes()))
        by_path[row.path] = {"levels": min(len(np.unique(matrix)) for matrix in codes), "bits": q.bits_per_element}
        if site.kind == "leaf":
            sums, beyond = jax.device_get(_leaf_noise(leaves[site.key], q))
            by_path[row.path] |= {"weight": _decibels(sums)}
            if site.spec.format.is_integer:
                by_path[row.path] |= {"weight_clipped": float(beyond)}
    return by_path


@jax.jit
def _leaf_noise(w: Array, q: QTensor) -> tuple[Array, Array]:
    """The sums of squares of a weight and its error, and the share that is more than half a step away."""
    wide = w.astype(jnp.float32)
    error = wide - q.dequantize().astype(jnp.float32)
    blocks = q.blocks
    steps = jnp.abs(split(error, blocks)) / spread(q.scale_values, q.shape, blocks)
    is_far = join((steps > 0.5 + 2.0**-10).astype(jnp.float32), q.shape, blocks)
    return jnp.stack([jnp.sum(jnp.square(wide)), jnp.sum(jnp.square(error))]), jnp.mean(is_far)
