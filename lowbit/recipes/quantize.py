"""`quantize`: from a float model to a packed one, by a recipe, with a report."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.calibrate.fold import calibrate
from lowbit.core.kept import Kept
from lowbit.core.moments import Gram
from lowbit.core.paths import flatten
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizers
from lowbit.core.ranges import Full
from lowbit.core.spec import Tensor
from lowbit.interpret.bind import bind
from lowbit.interpret.execute import explain
from lowbit.interpret.packing import pack
from lowbit.interpret.state import get, quantizer_of
from lowbit.interpret.with_quantizers import with_quantizers
from lowbit.observe.observe import observe
from lowbit.packed import arguments
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Row, Site
from lowbit.quantizers.rtn import RTN

from .lookup import named
from .recipe import Recipe
from .report import Line, Report, decibels
from .solve import Solved, solve

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
Progress = Callable[[str, int, int], None]


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
    progress: Progress | None = None,
) -> tuple[QParams, Plan, Report]:
    """Returns the packed model, its plan, and a report: post-training quantization in one call.

    ``lowbit.execute(fn, plan)(qparams, *args)`` runs it, with the state as the first of ``args`` where there is one; where
    the recipe rewrites the model, ``report.fn`` and ``report.state`` take the place of ``fn`` and ``state``. ``params`` are
    left as they are.

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
    arguments.check(fn=fn, params=params)
    chosen = named(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(chosen, Recipe):
        raise TypeError(f"recipe must be a name or a Recipe, got {recipe!r:.40} ({type(recipe).__name__})")
    if not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be a positive number of bytes, got {window!r}")
    say: Progress = progress or (lambda what, done, of: None)
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    lead = () if state is None else (state,)
    given = batches if callable(batches) else list(batches)

    if chosen.rewrite is not None:
        with_state = fn if state is not None else (lambda p, s, *a: fn(p, *a))
        rewritten, params, new_state = chosen.rewrite(with_state, params, {} if state is None else state)
        fn, lead = rewritten, (new_state,)
        clock.done("rewrite")

    def calls() -> Iterator[tuple[Any, ...]]:
        for i, batch in enumerate(given() if callable(given) else given):
            yield (*lead, *arguments.batch_of(batch, i))

    first = next(calls(), None)
    if first is None:
        raise ValueError("batches is empty: a recipe needs at least one batch of calibration data")
    count = sum(1 for _ in calls())
    plan = bind(fn, rules, params, *first)
    plan = _with_input_ranges(plan, chosen)
    clock.done("bind")
    qstate = calibrate(fn, plan, params, calls(), progress=lambda n: say("ranges", n, count))
    clock.done("ranges")
    kept = Kept(cache, f"{plan.fingerprint} {chosen}", params, [first])
    work = _Work(fn, plan, chosen, calls, count, kept, say)
    solved, qstate, codes, notes, results = work.run(params, qstate, window)
    clock.done("solve")
    if chosen.is_remeasured and any(_is_static(site) for row in plan for site in row.sites):
        again = calibrate(fn, plan, solved, calls(), sequential=True, progress=lambda n: say("ranges again", n, count))
        qstate = _with_inputs_of(plan, qstate, again)
        clock.done("ranges again")
    qparams = pack(plan, params, qstate, codes=codes)
    clock.done("pack")
    kernels = _kernels(fn, plan, qparams, first)
    lines = tuple(_line(row, qparams, results, notes, kernels) for row in plan.rows)
    return (
        qparams,
        plan,
        Report(
            str(chosen), lines, qparams.bits_per_weight, qparams.nbytes, seconds, count, fn, lead[0] if lead else None
        ),
    )


class _Clock:
    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.last = seconds, time.perf_counter()

    def done(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


@dataclasses.dataclass(frozen=True)
class _Work:
    """The solving of all weights, window by window."""

    fn: Callable[..., Any]
    plan: Plan
    recipe: Recipe
    calls: Callable[[], Iterator[tuple[Any, ...]]]
    batches: int
    kept: Kept
    say: Progress

    def run(
        self, params: Any, qstate: Any, window: int
    ) -> tuple[Any, Any, dict[str, Any], dict[str, list[str]], dict[str, Any]]:
        """Returns parameters on their grids, the state with their scales, and codes, notes and results by leaf path."""
        codes: dict[str, Any] = {}
        notes: dict[str, list[str]] = {}
        results: dict[str, Any] = {}
        sites = self._sites(notes)
        done = 0
        for number, some in enumerate(self._windows(sites, window)):
            kept = self.kept.read(f"window-{number}")
            found: dict[str, Solved] = {}
            moments = {} if kept is not None else self._moments(params, qstate, some, number)
            leaves = dict(zip(*flatten(params)[:2], strict=True))
            for key, (row, site) in some.items():
                if kept is None:
                    found[key] = self._one(row, site, leaves[key], moments.get(key), qstate)
                    _check(key, found[key], self.recipe, notes)
                done += 1
                self.say("weights", done, len(sites))
            if kept is None:
                kept = {f"{key}:{name}": x for key, each in found.items() for name, x in _arrays(each).items()}
                self.kept.write(f"window-{number}", kept)
            values = {key: jnp.asarray(kept[f"{key}:values"]) for key in some}
            params = _replaced(params, values)
            for key, (_, site) in some.items():
                codes[key] = jnp.asarray(kept[f"{key}:codes"])
                results[key] = {name: kept[f"{key}:{name}"] for name in _NUMBERS}
                scale = [kept[f"{key}:scale {i}"] for i in range(_count(kept, key))]
                qstate = _with_scale(qstate, key, site.role, scale)
        return params, qstate, codes, notes, results

    def _sites(self, notes: dict[str, list[str]]) -> dict[str, tuple[Row, Site]]:
        """The weights to solve, by leaf path, in program order."""
        found: dict[str, tuple[Row, Site]] = {}
        for row in self.plan.rows:
            site = row.weight
            if site is None or site.spec is None or site.key in found:
                continue
            if site.kind != "leaf":
                notes.setdefault(site.key, []).append(f"a {site.kind} weight: nearest")
            elif not quantizer_of(site).is_nearest:
                notes.setdefault(site.key, []).append("its quantizer bends values or bounds: as it rounds")
            elif quantizer_of(site).needs_values:
                notes.setdefault(site.key, []).append("its scale is computed from the values: nearest")
            else:
                found[site.key] = row, site
                if said := self.recipe.solver.picks(site.spec.format, row.matrix.size[1:]):
                    notes.setdefault(site.key, []).append(said)
        return found

    def _windows(self, sites: Mapping[str, tuple[Row, Site]], window: int) -> Iterator[dict[str, tuple[Row, Site]]]:
        """Runs of weights whose second moments fit the window, `Recipe.passes` of them at least."""
        if not self.recipe.solver.needs_moment:
            if sites:
                yield dict(sites)
            return
        each = {key: 4 * row.matrix.size[0] * row.matrix.size[1] ** 2 for key, (row, site) in sites.items()}
        room = min(window, max(1, sum(each.values()) // self.recipe.passes))
        now: dict[str, tuple[Row, Site]] = {}
        held = 0
        for key, pair in sites.items():
            if now and held + each[key] > room:
                yield now
                now, held = {}, 0
            now[key] = pair
            held += each[key]
        if now:
            yield now

    def _moments(
        self, params: Any, qstate: Any, some: Mapping[str, tuple[Row, Site]], number: int
    ) -> dict[str, jax.Array]:
        """``H`` of every weight of a window, inputs as what precedes leaves them."""
        if not self.recipe.solver.needs_moment:
            return {}
        keys = set(some)
        rows = [r for r in self.plan.rows if r.weight is not None and r.weight.key in keys and r.primitive != "gather"]
        if not rows:
            return {}
        wanted = {row.path: {_input_role(row): (Gram(),)} for row in rows}
        seen = observe(
            self.fn, self.plan, params, self.calls(), wanted, qstate=qstate,
            progress=lambda n: self.say(f"inputs of window {number}", n, self.batches),
        )  # fmt: skip
        found = {}
        for row in rows:
            weight = row.weight
            assert weight is not None
            at = seen.get(weight.key, {}).get("input", {}).get("gram")
            at = seen[row.path][_input_role(row)].get("gram") if at is None else at
            if at is not None:
                found[weight.key] = at.reshape(-1, *at.shape[-2:])
        return found

    def _one(self, row: Row, site: Site, leaf: Any, moment: Any, qstate: Any) -> Solved:
        assert site.spec is not None
        quantizer, state = quantizer_of(site), get(qstate, site.key, site.role)
        probe = quantizer.quantize(state, leaf, site.operand)
        is_free = type(quantizer) is RTN and self.recipe.solver.value != "none"
        return solve(
            self.recipe.solver, site.spec, row.matrix, site.operand.stack, leaf, moment, probe.scale, probe.zero,
            is_free=is_free,
        )  # fmt: skip


_NUMBERS = ("error", "nearest", "power", "noise", "size", "clipped", "loose")


def _arrays(found: Solved) -> dict[str, Any]:
    scale = {f"scale {i}": x for i, x in enumerate(jax.tree.leaves(found.scale))}
    return {"codes": found.codes, "values": found.values, **scale, **{name: getattr(found, name) for name in _NUMBERS}}


def _count(kept: Mapping[str, Any], key: str) -> int:
    return sum(name.startswith(f"{key}:scale ") for name in kept)


def _check(key: str, found: Solved, recipe: Recipe, notes: dict[str, list[str]]) -> None:
    """Raises for a second moment that says nothing; notes what was decided.

    Raises:
        ValueError: naming the operation.
    """
    empty, definite = np.asarray(found.is_empty), np.asarray(found.is_definite)
    if empty.all() and recipe.solver.needs_moment:
        raise ValueError(f"{key}: its inputs were zero in every batch; calibrate with inputs that reach it")
    if empty.any():
        notes.setdefault(key, []).append(f"{int(empty.sum())} of {empty.size} matrices saw no input: nearest there")
    if recipe.solver.needs_moment and (loose := float(found.loose)) > 0.5:
        notes.setdefault(key, []).append(
            f"calibration inputs span few directions: {100 * loose:.0f} % are left to the damping of {recipe.solver.damping:g}"
        )
    if not definite.all():
        raise ValueError(
            f"{key}: the second moment of its inputs is not positive definite with a damping of "
            f"{recipe.solver.damping:g}: give more calibration samples, or a larger damping"
        )


def _input_role(row: Row) -> str:
    return next(site.role for site in row.sites if not site.is_weight)


def _replaced(params: Any, values: Mapping[str, Any]) -> Any:
    paths, leaves, tree = flatten(params)
    return jax.tree.unflatten(tree, [values.get(path, x) for path, x in zip(paths, leaves, strict=True)])


def _with_scale(qstate: Any, key: str, role: str, leaves: Sequence[Any]) -> Any:
    """A state with another scale for one weight; as it is where its quantizer keeps its scale elsewhere."""
    old = qstate["fixed"][key][role].get("scale")
    if old is None:
        return qstate
    new = jax.tree.unflatten(jax.tree.structure(old), [jnp.asarray(x) for x in leaves])
    fixed = dict(qstate["fixed"])
    fixed[key] = {**fixed[key], role: {**fixed[key][role], "scale": new}}
    return {**qstate, "fixed": fixed}


def _is_static(site: Site) -> bool:
    return not site.is_weight and site.spec is not None and not site.spec.dynamic


def _with_inputs_of(plan: Plan, qstate: Any, other: Any) -> Any:
    """A state with the inputs' part of another."""
    made = {part: {key: dict(roles) for key, roles in qstate[part].items()} for part in ("learn", "fixed")}
    for row in plan.rows:
        for site in row.sites:
            if not site.is_weight and site.spec is not None:
                for part, sites in made.items():
                    sites[site.key][site.role] = other[part][site.key][site.role]
    return made


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
    row: Row, qparams: QParams, results: Mapping[str, Any], notes: Mapping[str, list[str]], kernels: Mapping[str, str]
) -> Line:
    weight = row.weight
    inputs = next((site for site in row.sites if not site.is_weight), None)
    key = row.path if weight is None else weight.key
    found = results.get(key)
    packed: Any = qparams.weights().get(key) if weight is not None and weight.spec is not None else None
    said = list(notes.get(key, ()))
    if not row.is_quantized:
        said.append(f"stays in float: {row.rule or 'no rule'}")
    numbers: dict[str, float] = {}
    if found is not None:
        f = {name: float(value) for name, value in found.items()}
        numbers = {
            "weight_db": decibels(f["size"], f["noise"]),
            "output_db": decibels(f["power"], f["error"]),
            "ratio": f["error"] / f["nearest"] if f["nearest"] > 0 else 1.0,
            "clipped": f["clipped"],
        }
    return Line(
        path=row.path,
        weight="" if weight is None or weight.spec is None else weight.spec.text,
        inputs="" if inputs is None or inputs.spec is None else inputs.spec.text,
        bits=packed.bits_per_element if isinstance(packed, QTensor) else 0.0,
        kernel=kernels.get(row.path, ""),
        notes=tuple(said),
        **numbers,
    )
