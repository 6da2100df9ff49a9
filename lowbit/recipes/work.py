"""The weights of a plan, solved in program order, window by window: memory is that of one window's second moments."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.kept import Kept
from lowbit.core.moments import Gram
from lowbit.core.paths import flatten
from lowbit.interpret.state import get, quantizer_of
from lowbit.observe.observe import observe
from lowbit.plan.rows import Plan, Row, Site
from lowbit.quantizers.rtn import RTN

from .recipe import Recipe
from .solve import Solved, solve

Progress = Callable[[str, int, int], None]
"""``(what, done, of)``"""


@dataclasses.dataclass(frozen=True)
class Work:
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
                if row.primitive == "gather" and self.recipe.solver.needs_moment:
                    notes.setdefault(site.key, []).append(
                        "a look-up has no inputs to weigh by: searched scales, nearest"
                    )
                elif said := self.recipe.solver.picks(site.spec.format, row.matrix.size[1:]):
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
