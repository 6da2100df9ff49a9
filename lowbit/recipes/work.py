"""The weights of a plan, solved in program order, window by window: memory is that of one window's second moments."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.kept import Kept
from lowbit.core.moments import ChannelMean, Cross, FloatMean, Gram, Tokens
from lowbit.core.paths import flatten
from lowbit.core.quantizer import Quantizers
from lowbit.interpret.state import PARTS, get, marked, put, quantized_sites, quantizer_of
from lowbit.interpret.with_quantizers import with_quantizers
from lowbit.observe.observe import observe
from lowbit.plan.rows import Plan, Row, Site
from lowbit.plan.views import row_view
from lowbit.program.around import around
from lowbit.quantizers.rtn import RTN
from lowbit.rewrites.bias_correction import Behind

from .inputs import Inputs
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
    biases: Mapping[str, Behind] = dataclasses.field(default_factory=dict)

    def run(
        self, params: Any, qstate: Any, window: int
    ) -> tuple[Any, Any, dict[str, Any], dict[str, list[str]], dict[str, Any]]:
        """Returns parameters on their grids, the state with their scales, and codes, notes and results by leaf path."""
        codes: dict[str, Any] = {}
        notes: dict[str, list[str]] = {}
        results: dict[str, Any] = {}
        sites = self._sites(notes)
        bare = bare_plan(self.plan, frozenset(sites))
        before, done = params, 0
        floats: dict[str, Any] = {}
        for number, (some, watched) in enumerate(self._windows(sites, window)):
            kept = self.kept.load(f"window-{number}")
            solved: dict[str, Solved] = {}
            moments = {} if kept is not None else self._moments(bare, before, params, qstate, some, watched, number)
            if moments and not floats:
                floats = self._float_means(bare, before, sites)
            leaves = dict(zip(*flatten(params)[:2], strict=True))
            for key, (row, site) in some.items():
                if kept is None:
                    inputs = moments.get(key)
                    if inputs is None and self.recipe.solver.needs_moment and row.primitive != "gather":
                        notes.setdefault(key, []).append(_UNSEEN)
                    if inputs is not None and key in floats:
                        inputs = dataclasses.replace(inputs, float_mean=floats[key])
                    solved[key] = self._one(row, site, jnp.asarray(leaves[key]), inputs, qstate, self._own(key, leaves))
                    _check(key, solved[key], self.recipe, notes)
                done += 1
                self.say("weights", done, len(sites))
            if kept is None:
                kept = {f"{key}:{name}": x for key, each in solved.items() for name, x in _arrays(each).items()}
                self.kept.keep(f"window-{number}", kept)
            values = {key: jnp.asarray(kept[f"{key}:values"]) for key in some}
            for key in some:
                own = {p: jnp.asarray(kept[f"{key}:taken {p}"]) for p in self._own(key, leaves)}
                values |= own
                if own:
                    bits = sum(8 * x.nbytes for x in own.values()) / values[key].size
                    notes.setdefault(key, []).append(
                        f"what is left in {', '.join(own)}: {bits:.2f} bits per weight more"
                    )
            params = self._shifted(_replaced(params, values), some, kept, notes)
            for key, (_, site) in some.items():
                codes[key] = jnp.asarray(kept[f"{key}:codes"])
                results[key] = {name: kept[f"{key}:{name}"] for name in _NUMBERS}
                scale = [kept[f"{key}:scale {i}"] for i in range(_count(kept, key))]
                qstate = _with_scale(qstate, key, site.role, scale, kept.get(f"{key}:zero"))
        return params, qstate, codes, notes, results

    def _own(self, key: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that take back a part of what rounding leaves of a weight, by path."""
        if self.recipe.remainder is None:
            return {}
        root = f"{self.recipe.remainder.root}/{key}/"
        return {path: x for path, x in leaves.items() if path.startswith(root)}

    def _sites(self, notes: dict[str, list[str]]) -> dict[str, tuple[Row, Site]]:
        """The weights to solve, by leaf path, in program order."""
        sites: dict[str, tuple[Row, Site]] = {}
        for row in self.plan.rows:
            site = row.weight
            if site is None or site.spec is None or site.key in sites:
                continue
            if site.kind != "leaf":
                notes.setdefault(site.key, []).append(f"a {site.kind} weight: nearest")
            elif not quantizer_of(site).is_nearest:
                notes.setdefault(site.key, []).append("its quantizer bends values or bounds: as it rounds")
            elif quantizer_of(site).needs_values:
                notes.setdefault(site.key, []).append("its scale is computed from the values: nearest")
            else:
                sites[site.key] = row, site
                if row.primitive == "gather" and self.recipe.solver.needs_moment:
                    notes.setdefault(site.key, []).append(
                        "a look-up has no inputs to weigh by: searched scales, nearest"
                    )
                elif (self.recipe.solver.alpha or self.recipe.solver.is_centered) and self._is_turned(row):
                    notes.setdefault(site.key, []).append(
                        "in a loop over time or a shard_map: aimed at its own weight, not at results"
                    )
        return sites

    def _windows(
        self, sites: Mapping[str, tuple[Row, Site]], window: int
    ) -> Iterator[tuple[dict[str, tuple[Row, Site]], dict[str, tuple[Row, Site]]]]:
        """Runs of weights that are solved at once (see `Recipe.passes`), and what is watched for them.

        As much is watched as fits the window, for several runs the same: their passes over the data are one compiled program.
        """
        if not self.recipe.solver.needs_moment:
            if sites:
                yield dict(sites), dict(sites)
            return
        held: dict[str, tuple[Row, Site]] = {}
        size, groups = 0, []
        each = 2 if self.recipe.solver.alpha else 1
        for key, (row, site) in sites.items():
            need = 4 * each * row.matrix.size[0] * row.matrix.size[1] ** 2
            if held and size + need > window:
                groups.append(held)
                held, size = {}, 0
            held[key] = row, site
            size += need
        length = max(1, -(-len(sites) // self.recipe.passes))
        for group in (*groups, held):
            keys = list(group)
            for first in range(0, len(keys), length):
                yield {key: group[key] for key in keys[first : first + length]}, group

    def _moments(
        self, bare: Plan, before: Any, params: Any, qstate: Any, some: Mapping[str, tuple[Row, Site]],
        watched: Mapping[str, tuple[Row, Site]], number: int,
    ) -> dict[str, Inputs]:  # fmt: skip
        """What is known of the inputs of every weight of a window, as what precedes leaves them."""
        solver = self.recipe.solver
        if not solver.needs_moment:
            return {}
        rows = [r for r in self.plan.rows if r.weight is not None and r.weight.key in watched and _has_rows(r)]
        if not any(row.weight is not None and row.weight.key in some for row in rows):
            return {}
        most = self.recipe.most_rows
        moment = solver.moment(most)
        statistics = (moment, Tokens(most), *((Cross(most),) if solver.alpha else ()))
        means = (ChannelMean(most), *((FloatMean(most),) if solver.alpha else ()))
        wanted = {
            row.path: {_input_role(row): (Gram(most), Tokens(most))}
            if self._is_turned(row)
            else {_input_role(row): (*statistics, *(means if self._behind(row) else ()))}
            for row in rows
        }
        seen = observe(
            self.fn, bare, params, self.calls(), wanted, qstate=carried(bare, qstate), beside=before if solver.alpha else None,
            loss=solver.loss if moment.beside == "gradient" else None,
            progress=lambda n: self.say(f"inputs of window {number}", n, self.batches),
        )  # fmt: skip
        inputs_of = {}
        for row in rows:
            weight = row.weight
            assert weight is not None
            if weight.key not in some:
                continue
            at = seen.get(weight.key, {}).get("input", {})
            name = "gram" if self._is_turned(row) else moment.name
            at = at if name in at else seen[row.path][_input_role(row)]
            if name in at and len((inputs := _inputs(at, name)).moment) % row.matrix.size[0] == 0:
                inputs_of[weight.key] = inputs
        return inputs_of

    def _float_means(self, bare: Plan, params: Any, sites: Mapping[str, tuple[Row, Site]]) -> dict[str, Any]:
        """Means of the inputs in the float model, by weight, where biases take means back; `FloatMean` sees them beside targets."""
        rows = {key: row for key, (row, _) in sites.items() if _has_rows(row) and self._behind(row)}
        if not rows or self.recipe.solver.alpha:
            return {}
        wanted = {row.path: {_input_role(row): (ChannelMean(self.recipe.most_rows),)} for row in rows.values()}
        seen = observe(self.fn, bare, params, self.calls(), wanted)
        means = {key: np.asarray(seen[row.path][_input_role(row)]["channel_mean"]) for key, row in rows.items()}
        return {key: x.reshape(-1, x.shape[-1]) for key, x in means.items()}

    def _behind(self, row: Row) -> Behind | None:
        is_asked = self.recipe.solver.is_centered and not self._is_turned(row)
        return self.biases.get(row.path) if is_asked else None

    def _is_turned(self, row: Row) -> bool:
        """Whether an operation is computed several times a batch: it then has no one input of the float model beside it."""
        assert self.plan.program is not None
        assert row.operation is not None
        inside = around(self.plan.program.jaxpr, row.operation.address)
        return sum(call in ("scan", "while") for call in inside) > len(row.stack) or "shard_map" in inside

    def _shifted(
        self, params: Any, some: Mapping[str, tuple[Row, Site]], kept: Mapping[str, Any], notes: dict[str, list[str]]
    ) -> Any:
        """Parameters whose biases take back the means of the weights of a window."""
        for key, (row, _) in some.items():
            bias, shift = self._behind(row), kept.get(f"{key}:shift")
            if bias is None or shift is None:
                continue
            view = row.matrix
            channels = np.asarray(view.matrices(np.broadcast_to(bias.made, view.shape)))[:, 0]
            leaves = dict(zip(*flatten(params)[:2], strict=True))
            moved, most = bias.moved(leaves[bias.path], channels, shift)
            params = _replaced(params, {bias.path: moved})
            notes.setdefault(key, []).append(f"{bias.path} moved by up to {most:.3g}")
        return params

    def _one(
        self, row: Row, site: Site, leaf: Any, inputs: Inputs | None, qstate: Any, own: Mapping[str, Any]
    ) -> Solved:
        assert site.spec is not None
        quantizer, state = quantizer_of(site), get(qstate, site.key, site.role)
        is_plain = type(quantizer) is RTN and not site.spec.dynamic
        if is_plain:  # its grid stands in its state
            scale, zero = state["fixed"]["scale"], state["fixed"].get("zero")
        else:
            probe = quantizer.quantize(state, leaf, site.operand)
            scale, zero = probe.scale, probe.zero
        is_free = is_plain and self.recipe.solver.value != "none"
        return solve(
            self.recipe.solver, site.spec, row.matrix, site.operand.stack, leaf, inputs, scale, zero,
            is_free=is_free, remainder=self.recipe.remainder, own=own,
        )  # fmt: skip


def bare_plan(plan: Plan, solved: frozenset[str]) -> Plan:
    """Returns the plan without quantizers of the weights that are solved: their values are on grids already.

    Statistics are then computed by one program, whatever the widths.

    Args:
        plan: from `lowbit.bind`.
        solved: paths of leaves.
    """

    def choose(row: Row) -> Any:
        weight = row.weight
        if weight is None or weight.spec is None or weight.key not in solved:
            return None
        others = [site.quantizer for site in row.sites if not site.is_weight and site.quantizer is not None]
        return Quantizers(None, others[0]) if others else "keep"

    return with_quantizers(plan, choose)


def carried(bare: Plan, qstate: Any) -> Any:
    """Returns the state of a plan without some of its quantizers; None where none are left: the model in float.

    Args:
        bare: from `bare_plan`.
        qstate: of the whole plan.
    """
    if not bare.quantized:
        return None
    parts: Any = {part: {} for part in PARTS}
    for _, site in quantized_sites(bare):
        put(parts, site.key, site.role, get(qstate, site.key, site.role))
    return marked(bare, parts)


_UNSEEN = (
    "an operation takes a part of it, and nothing says which inputs meet which weights: every input counts alike, searched "
    "scales, nearest"
)
"""Said of weights whose inputs have no moments that fit them: see `lowbit.plan.views.row_view`."""

_MOMENTS = {"cross": 2, "channel_mean": 1, "float_mean": 1, "tokens": 0}
"""Statistics of inputs beside the second moment, and how many axes each has behind its matrices."""
_NUMBERS = ("error", "nearest", "power", "noise", "size", "clipped", "loose", "few")


def _has_rows(row: Row) -> bool:
    """Whether the input of an operation is read as rows of its weight's matrix."""
    index = next(i for i, site in enumerate(row.sites) if not site.is_weight)
    return row.primitive != "gather" and row_view(row, index) is not None


def _inputs(seen: Mapping[str, Any], moment: str) -> Inputs:
    """Moments out of finished statistics, layers in front as matrices."""
    axes = {moment: 2, **_MOMENTS}
    arrays = {name: np.asarray(seen[name]) for name in axes if name in seen}
    shaped = {name: x.reshape(-1, *x.shape[x.ndim - axes[name] :]) for name, x in arrays.items()}
    return Inputs(
        shaped[moment], shaped.get("cross"), shaped.get("channel_mean"), shaped.get("float_mean"), shaped.get("tokens")
    )


def _arrays(solved: Solved) -> dict[str, Any]:
    scale = {f"scale {i}": x for i, x in enumerate(jax.tree.leaves(solved.scale))}
    numbers = {name: np.float32(getattr(solved, name)) for name in _NUMBERS}
    shift = {} if solved.shift is None else {"shift": solved.shift}
    zero = {} if solved.zero is None else {"zero": solved.zero}
    taken = {f"taken {path}": x for path, x in solved.taken.items()}
    return {"codes": solved.codes, "values": solved.values, **shift, **zero, **taken, **scale, **numbers}


def _count(kept: Mapping[str, Any], key: str) -> int:
    return sum(name.startswith(f"{key}:scale ") for name in kept)


def _check(key: str, solved: Solved, recipe: Recipe, notes: dict[str, list[str]]) -> None:
    """Raises for a second moment that says nothing; notes what was decided.

    Raises:
        ValueError: naming the operation.
    """
    empty, definite = np.asarray(solved.is_empty), np.asarray(solved.is_definite)
    if empty.all() and recipe.solver.needs_moment:
        raise ValueError(f"{key}: its inputs were zero in every batch; calibrate with inputs that reach it")
    if empty.any():
        notes.setdefault(key, []).append(f"{int(empty.sum())} of {empty.size} matrices saw no input: nearest there")
    if recipe.solver.needs_moment and (few := float(solved.few)) > 0:
        notes.setdefault(key, []).append(
            f"calibration inputs span few directions: {100 * few:.0f} % cannot have been seen, in fewer rows than inputs"
        )
    elif recipe.solver.needs_moment and (loose := float(solved.loose)) > 0.5:
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


def _with_scale(qstate: Any, key: str, role: str, leaves: Sequence[Any], zero: Any) -> Any:
    """A state with another scale and zero point for one weight; as it is where its quantizer keeps its scale elsewhere."""
    old = qstate["fixed"][key][role].get("scale")
    if old is None:
        return qstate
    new = jax.tree.unflatten(jax.tree.structure(old), [jnp.asarray(x) for x in leaves])
    fixed = dict(qstate["fixed"])
    own = {**fixed[key][role], "scale": new}
    fixed[key] = {**fixed[key], role: {**own, "zero": jnp.asarray(zero)} if "zero" in own else own}
    return {**qstate, "fixed": fixed}
