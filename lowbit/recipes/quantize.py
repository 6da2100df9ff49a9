"""`quantize`: from a float model to a packed one, by a recipe, with a report."""

import dataclasses
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.calibrate.fold import calibrate
from lowbit.core.metrics import decibels
from lowbit.core.paths import flatten
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizers
from lowbit.core.ranges import Full
from lowbit.core.spec import Tensor
from lowbit.interpret.bind import bind
from lowbit.interpret.execute import explain
from lowbit.interpret.packing import pack
from lowbit.interpret.with_quantizers import with_quantizers
from lowbit.observe.diagnose import Diagnosis
from lowbit.observe.diagnose import diagnose as diagnose_alone
from lowbit.packed import arguments
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Row
from lowbit.quantizers.rtn import RTN
from lowbit.rewrites.bias_correction import bias_correction
from lowbit.rewrites.given import given as with_batches
from lowbit.rewrites.stateless import rewritten

from .lookup import named
from .noise import accumulated
from .recipe import Recipe
from .report import Line, Report
from .rounded import Given, rounded
from .work import Progress

Batches = Iterable[Any] | Callable[[], Iterable[Any]]


def quantize(
    fn: Callable[..., Any],
    params: Any,
    rules: Mapping[str, Any],
    *,
    batches: Batches,
    state: Any = None,
    recipe: str | Recipe = "auto",
    window: int = 1 << 28,
    cache: str | Path | None = None,
    diagnose: bool = False,
    progress: Progress | None = None,
) -> tuple[QParams, Plan, Report]:
    """Returns the packed model, its plan, and a report: post-training quantization in one call.

    ``lowbit.execute(fn, plan)(qparams, *args)`` runs it, with the state as the first of ``args`` where there is one; where
    the recipe rewrites the model, ``report.fn`` and ``report.state`` take the place of ``fn`` and ``state``: called as ``fn`` is,
    without a state where it takes none. ``params`` are left as they are.

    Args:
        fn: ``fn(params, *args)``, or ``fn(params, state, *args)`` where ``state`` is given.
        params: float parameters.
        rules: as `lowbit.bind` takes them.
        batches: tuples of ``args`` without the state: a list, or a function that returns an iterator over them. They are
            gone through once for the input ranges and once for every window of weights.
        state: what the function takes beside parameters and data, or None.
        recipe: the name of one (`lowbit.recipes.lookup.names`), or a `lowbit.recipes.recipe.Recipe`.
        window: bytes of second moments that are held at a time; at least one operation's.
        cache: a folder in which solved weights are kept, so that a run that was stopped goes on; None: nowhere.
        diagnose: whether the report says how much noise the results of every operation carry with everything before it
            quantized too: two more passes over the first batch, whose results are all held.
        progress: called with what is done, how many of how many.

    Raises:
        TypeError: for arguments of another type.
        ValueError: for an unknown recipe, no batch, NaN or infinity in weights or inputs (by batch and operation), an
            operation whose inputs were zero throughout, a second moment that is not positive definite with the recipe's
            damping, and whatever `lowbit.bind` refuses.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 2.0], [2.0, 1.0], [0.5, -1.0]])
        >>> params = {"w": jnp.array([[1.0, 0.3], [0.2, -0.7]])}
        >>> qparams, plan, report = quantize(
        ...     lambda p, x: x @ p["w"], params, {"**": "w4"}, batches=[(x,)], recipe="gptq"
        ... )
        >>> [(line.path, line.weight) for line in report.lines]
        [('w', 'int4/channel/sym')]
    """
    arguments.check(fn=fn, params=params, diagnose=diagnose, progress=progress)
    chosen = named(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(chosen, Recipe):
        raise TypeError(f"recipe must be a name or a Recipe, got {recipe!r:.40} ({type(recipe).__name__})")
    if not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be a positive number of bytes, got {window!r}")
    say: Progress = progress or (lambda what, done, of: None)
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    lead = () if state is None else (state,)
    given = arguments.callable_batches(batches)

    def calls() -> Iterator[tuple[Any, ...]]:
        for i, batch in enumerate(given()):
            yield (*lead, *arguments.batch_of(batch, i))

    first = next(calls(), None)
    if first is None:
        raise ValueError("batches is empty: a recipe needs at least one batch of calibration data")
    arguments.check_call(fn, params, first, {}, "batches[0]")
    if any(0 in np.shape(x) for x in jax.tree.leaves(first[len(lead) :])):
        raise ValueError("batches[0] holds an array without elements: a recipe needs inputs to calibrate with")
    arguments.check_runs(fn, params, first)
    if chosen.pick is not None:
        chosen = chosen.pick(bind(fn, rules, params, *first))
    said = ""
    if chosen.rewrite is not None:
        args = first[len(lead) :]
        fn, params, new_state = rewritten(with_batches(chosen.rewrite, given, rules), fn, params, state)
        lead = () if state is None else (new_state,)
        first = (*lead, *args)
        said = "" if inspect.isfunction(getattr(fn, "fn", fn)) else str(fn)
        clock.done("rewrite")
    count = sum(1 for _ in calls())
    root = None if chosen.remainder is None else f"{chosen.remainder.root}/"
    added = [] if root is None else [path for path in flatten(params)[0] if path.startswith(root)]
    plan = bind(fn, {f"{root}**": "keep", **rules} if added else rules, params, *first)
    plan = _with_input_ranges(plan, chosen)
    if not chosen.solver.needs_moment and not any(
        site.spec for row in plan for site in row.sites if not site.is_weight
    ):
        _check_batches(given())  # nothing else looks at them
    clock.done("bind")
    qstate = calibrate(fn, plan, params, calls(), progress=lambda n: say("ranges", n, count))
    clock.done("ranges")

    given_model = Given(fn, plan, params, qstate, calls, count, window, cache, say, first)
    chosen, before, solved, qstate, codes, notes, results = rounded(given_model, chosen)
    params = solved if chosen.blocks is not None or chosen.solver.is_centered or added else params
    clock.done("solve")
    if chosen.is_corrected:
        some = list(itertools.islice(calls(), chosen.mean_batches))
        params, corrected = bias_correction(
            fn, plan, before, qstate, some, rounded=solved, progress=lambda n, of: say("biases", n, of)
        )
        keys = {row.path: row.weight.key for row in plan.rows if row.weight is not None}
        for path, bias, most in corrected.moved:
            notes.setdefault(keys.get(path, path), []).append(f"{bias} moved by up to {most:.3g}")
        solved = params
        clock.done("biases")
    # What the solver knew of results is no longer so where blocks were learned: those operations are measured again.
    alone = diagnose_alone(fn, plan, before, qstate, [first], codes=codes) if chosen.blocks is not None else None
    carried = accumulated(fn, plan, before, solved, qstate, first) if diagnose else {}
    if diagnose:
        clock.done("diagnose")
    qparams = pack(plan, params, qstate, codes=codes)
    clock.done("pack")
    more = sum(leaf.nbytes for path, leaf in zip(*flatten(params)[:2], strict=True) if path in added)
    size = max(sum(math.prod(q.shape) for q in qparams.weights().values()), 1)
    kernels = _kernels(fn, plan, qparams, first)
    lines = tuple(_line(row, qparams, results, notes, kernels, carried, alone) for row in plan.rows)
    return (
        qparams,
        plan,
        Report(
            str(chosen),
            lines,
            qparams.bits_per_weight + 8 * more / size,
            qparams.nbytes,
            seconds,
            count,
            fn,
            lead[0] if lead else None,
            said,
        ),
    )


def _check_batches(batches: Iterable[Any]) -> None:
    """Raises for NaN, by batch and argument. Infinity may be a mask."""
    for number, batch in enumerate(batches):
        for keys, leaf in jax.tree_util.tree_flatten_with_path(arguments.batch_of(batch, number))[0]:
            x = np.asarray(leaf)
            if jnp.issubdtype(x.dtype, jnp.floating) and np.isnan(x.astype(np.float32)).any():
                raise ValueError(
                    f"argument {jax.tree_util.keystr(keys)} of batches[{number}] held NaN: check the batches"
                )


class _Clock:
    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.last = seconds, time.perf_counter()

    def done(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


def _with_input_ranges(plan: Plan, recipe: Recipe) -> Plan:
    """The plan with the recipe's range rule for inputs that have none of their own, where it can serve them."""
    rule = recipe.inputs
    if rule is None:
        return plan

    def choose(row: Row) -> Quantizers | None:
        others = [site.quantizer for site in row.sites if not site.is_weight and site.quantizer is not None]
        if not others or not all(_takes_rule(q) for q in others):
            return None
        weight = next((site.quantizer for site in row.sites if site.is_weight), None)
        return Quantizers(weight, dataclasses.replace(others[0], range=rule))

    return plan if plan.is_full_integer else with_quantizers(plan, choose)


def _takes_rule(quantizer: Any) -> bool:
    if type(quantizer) is not RTN or type(quantizer.range) is not Full:
        return False
    return not quantizer.spec.dynamic and isinstance(quantizer.spec.granularity, Tensor)


def _kernels(fn: Any, plan: Plan, qparams: QParams, args: Sequence[Any]) -> dict[str, str]:
    lines = [line.split(None, 2) for line in explain(fn, plan, qparams, *args).splitlines()]
    return {words[0]: words[1] for words in lines if len(words) > 1}


def _line(
    row: Row,
    qparams: QParams,
    results: Mapping[str, Any],
    notes: Mapping[str, list[str]],
    kernels: Mapping[str, str],
    carried: Mapping[str, float],
    alone: Diagnosis | None,
) -> Line:
    weight = row.weight
    inputs = next((site for site in row.sites if not site.is_weight), None)
    key = row.path if weight is None else weight.key
    solved = results.get(key)
    packed: Any = qparams.weights().get(key) if weight is not None and weight.spec is not None else None
    said = list(notes.get(key, ()))
    if not row.is_quantized:
        said.append(f"stays in float: {row.rule or 'no rule'}")
    numbers: dict[str, float] = {}
    if solved is not None:
        f = {name: float(value) for name, value in solved.items()}
        numbers = {"weight_db": decibels(f["size"], f["noise"]), "clipped": f["clipped"]}
        if "error" not in f:  # learned with its block
            assert alone is not None
            numbers["output_db"] = alone[row.path].output
        else:
            numbers["output_db"] = decibels(f["power"], f["error"])
            numbers["ratio"] = f["error"] / f["nearest"] if f["nearest"] > 0 else 1.0
    return Line(
        path=row.path,
        weight="-" if weight is None else "" if weight.spec is None else weight.spec.text,
        inputs="" if inputs is None or inputs.spec is None else inputs.spec.text,
        bits=packed.bits_per_element if isinstance(packed, QTensor) else 0.0,
        kernel=kernels.get(row.path, ""),
        accumulated_db=carried.get(row.path),
        notes=tuple(said),
        **numbers,
    )
