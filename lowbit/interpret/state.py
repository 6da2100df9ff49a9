"""The state of all sites as one pytree: ``{"learn": {key: {role: ...}}, "fixed": {key: {role: ...}}}``.

Beside the roles of every site stands ``"plan <fingerprint>": {}``: a key without arrays, so that optimizers, `jax.tree.map`,
`jax.vmap` and checkpoints carry it, and it is known under `jax.jit` too. `check_state` refuses the state of another plan.
A full-integer plan's has ``"spans of <step>"`` too, arrays in ``"fixed"``: what was measured of tensors that share a grid.
"""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.meshes import automatic
from lowbit.core.paths import flatten
from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand
from lowbit.core.statistics import NotFinite, Statistic
from lowbit.plan.rows import Plan, Row, Site, Step

QState = dict[str, Any]

PARTS = ("learn", "fixed")
CODES = "codes"
"""Where a walk carries the codes of a derived weight that a solver chose."""
_MARK = "plan "
_SPANS = "spans of "


@dataclasses.dataclass(frozen=True)
class Values(Statistic):
    """The values themselves, of the last batch: what a derived weight starts from."""

    name = "values"
    is_exact = False

    def init(self, operand: Operand) -> Any:
        return jnp.zeros(operand.shape, operand.dtype)

    def update(self, state: Any, x: Array, operand: Operand, *, beside: Array | None = None) -> Any:
        return x

    def across(self, state: Any, axis_names: tuple[str, ...]) -> Any:
        return state


def layer_operand(site: Site) -> Operand:
    """Returns the operand of one layer: without the leading axes that count layers."""
    operand, depth = site.operand, site.operand.stack
    contract = tuple(i - depth for i in operand.contract)
    return dataclasses.replace(operand, shape=operand.shape[depth:], contract=contract, stack=0)


def quantized_sites(plan: Plan) -> Iterator[tuple[Row | Step, Site]]:
    """Yields every quantized site once: a shared leaf with the first row that has it, a grid with the step it is of."""
    seen = set()
    for row in plan.rows:
        for site in row.sites:
            name = (site.key, site.role)
            if site.spec is not None and site.kind != "grid" and name not in seen:
                seen.add(name)
                yield row, site
    for step in plan.steps:
        if step.site is not None:
            yield step, step.site


def walked_sites(plan: Plan) -> Iterator[tuple[Row | Step, Site]]:
    """Yields the sites whose state the walk carries: all but the leaves, which are quantized before it."""
    for row, site in quantized_sites(plan):
        if site.kind != "leaf":
            yield row, site


def quantizer_of(site: Site) -> Any:
    """Returns the quantizer of a site.

    Raises:
        ValueError: for a plan read from a file, which holds specs only.
    """
    if site.quantizer is None:
        raise ValueError(
            f"{site.key}: this plan came from a file and holds specs, not quantizers: it can execute; to simulate or "
            f"train, bind again"
        )
    return site.quantizer


def get(qstate: QState, key: str, role: str) -> QState:
    """Returns the state of one site.

    Raises:
        ValueError: if there is none.
    """
    try:
        return {part: qstate[part][key][role] for part in PARTS}
    except (KeyError, TypeError):
        known = sorted(qstate["learn"]) if isinstance(qstate, Mapping) and "learn" in qstate else "no such tree"
        raise ValueError(
            f"qstate has no state for the {role} of {key!r}; it has {known}: was it made by lb.init for this plan?"
        ) from None


def put(parts: QState, key: str, role: str, state: QState) -> None:
    """Sets the state of one site in a tree under construction."""
    for part in PARTS:
        parts.setdefault(part, {}).setdefault(key, {})[role] = state[part]


def marked(plan: Plan, qstate: Any) -> QState:
    """Returns a state whose every site carries the fingerprint of ``plan``, in place of any other.

    For a state made by hand, by an older lowbit, or read by a tool that loses keys without arrays. Nothing is checked but
    that the sites are those of the plan.

    Raises:
        TypeError: if it is no state.
        ValueError: if its sites are not those of the plan.
    """
    _check_sites(plan, qstate)

    def one(roles: Mapping[str, Any]) -> dict[str, Any]:
        return {role: x for role, x in roles.items() if not role.startswith(_MARK)} | {_MARK + plan.fingerprint: {}}

    return {part: {key: one(roles) for key, roles in qstate[part].items()} for part in PARTS}


def with_spans(qstate: QState, spans: Mapping[str, tuple[str, Any]]) -> QState:
    """Returns a state with the spans of steps, ``{step: (key, spans)}``, under keys that it has."""
    parts = {part: dict(qstate[part]) for part in PARTS}
    for step, (key, intervals) in spans.items():
        for part, value in zip(PARTS, ({}, dict(intervals)), strict=True):
            parts[part][key] = {**parts[part][key], _SPANS + step: value}
    return parts


def spans_of(qstate: QState) -> dict[str, tuple[str, Any]]:
    """Returns the spans in a state, as `with_spans` takes them; none of one that an older lowbit made."""
    return {
        role.removeprefix(_SPANS): (key, x)
        for key, roles in qstate["fixed"].items()
        for role, x in roles.items()
        if role.startswith(_SPANS)
    }


def with_spans_from(qstate: QState, before: QState) -> QState:
    """Returns a state with the spans of the one that it was made from."""
    return with_spans(qstate, spans_of(before))


def check_state(plan: Plan, qstate: Any) -> None:
    """Raises unless every site of a state is of this plan. Values are not looked at: it holds under `jax.jit` too.

    Raises:
        TypeError: if it is no state.
        ValueError: if it is another plan's, with the first difference, or carries no fingerprint.
    """
    _check_sites(plan, qstate)
    for part in PARTS:
        for key, roles in qstate[part].items():
            fingerprints = [role.removeprefix(_MARK) for role in roles if role.startswith(_MARK)]
            if not fingerprints:
                raise ValueError(
                    f"qstate[{part!r}][{key!r}] does not say which plan it is of: it was made by hand, by an older lowbit or "
                    f"went through a file that loses keys without arrays. If it is this plan's, "
                    f"lowbit.interpret.state.marked(plan, qstate) says so"
                )
            if fingerprints != [plan.fingerprint]:
                sites = {site.role: site.method for _, site in quantized_sites(plan) if site.key == key}
                raise ValueError(
                    f"qstate is another plan's ({', '.join(fingerprints)}, this one is {plan.fingerprint}): its state of {key!r} was "
                    f"made with another quantizer, shape or model than {sites}; take the state that lowbit.init or "
                    f"lowbit.calibrate made for this plan"
                )


def _check_sites(plan: Plan, qstate: Any) -> None:
    if not isinstance(qstate, Mapping) or not all(isinstance(qstate.get(part), Mapping) for part in PARTS):
        got = f"keys {list(qstate)}" if isinstance(qstate, Mapping) else type(qstate).__name__
        raise TypeError(f'qstate must be {{"learn": ..., "fixed": ...}} as lowbit.init returns it, got {got}')
    wanted: dict[str, set[str]] = {}
    for _, site in quantized_sites(plan):
        wanted.setdefault(site.key, set()).add(site.role)
    for part in PARTS:
        given = {
            key: {role for role in roles if not role.startswith((_MARK, _SPANS))} for key, roles in qstate[part].items()
        }
        if given != wanted:
            extra, missing = _pairs(given, wanted), _pairs(wanted, given)
            raise ValueError(
                f"qstate is another plan's: qstate[{part!r}] has {extra or 'nothing else'} that this plan has not, and no "
                f"state for {missing or 'nothing'}; take the state that lowbit.init or lowbit.calibrate made for this plan"
            )


def _pairs(some: Mapping[str, set[str]], without: Mapping[str, set[str]]) -> str:
    """The sites of one side that the other lacks, the first three."""
    left = [f"the {role} of {key!r}" for key in some for role in sorted(some[key] - without.get(key, set()))]
    return ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")


def site_key(key: Array, name: str) -> Array:
    """Returns a key for a named consumer: a new consumer moves no other stream."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def has_no_values(x: Any) -> bool:
    """Returns whether an array is empty: a batch of nothing says nothing about ranges. Symbolic lengths count as some."""
    return any(isinstance(n, int) and n == 0 for n in x.shape)


def statistics_of(site: Site) -> tuple[Statistic, ...]:
    """Returns what is folded at a site that the walk carries: what its quantizer reads, and whether it was finite."""
    wanted = (Values(),) if site.is_weight else quantizer_of(site).needs(layer_operand(site))
    return (*wanted, NotFinite())


def carried_states(plan: Plan, qstate: QState, codes: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Returns what a walk carries of a state: ``{path: {role: state}}`` of the operands that are no parameters.

    Args:
        plan: the plan.
        qstate: its state.
        codes: chosen for weights; those of derived ones stand under `CODES`.
    """
    by_path: dict[str, dict[str, Any]] = {}
    for row, site in walked_sites(plan):
        by_path.setdefault(row.path, {})[site.role] = get(qstate, site.key, site.role)
        if site.is_weight and codes is not None and site.key in codes:
            by_path[row.path][CODES] = codes[site.key]
    return by_path


def empty_statistics(plan: Plan) -> dict[str, Any]:
    """Returns the statistics of every walked site before the first batch: ``{path: {role: {name: state}}}``."""
    by_path: dict[str, Any] = {}
    for row, site in walked_sites(plan):
        states = {s.name: s.init(layer_operand(site)) for s in statistics_of(site)}
        if row.stack:
            states = jax.tree.map(lambda x, stack=row.stack: jnp.broadcast_to(x, (*stack, *x.shape)), states)
        states = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), states)  # not weakly typed: that would compile twice
        by_path.setdefault(row.path, {})[site.role] = states
    return by_path


def finished(site: Site, states: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the finished statistics of one site (one layer)."""
    return {s.name: s.finish(states[s.name]) for s in statistics_of(site) if not isinstance(s, NotFinite)}


def initial_state(
    plan: Plan, params: Any, statistics: Mapping[str, Any], key: Array, *, known: Mapping[str, QState] | None = None
) -> QState:
    """Returns the state of every site from parameters and folded statistics.

    Args:
        plan: the plan.
        params: float parameters.
        statistics: folded, of the other sites.
        key: of what starts at random.
        known: states of parameters that are there already, by path.
    """
    known = known or {}
    leaves = dict(zip(*flatten(params)[:2], strict=True))
    parts: QState = {"learn": {}, "fixed": {}}
    for row, site in quantized_sites(plan):
        quantizer, now = quantizer_of(site), site_key(key, f"{site.key}/{site.role}")
        if site.kind == "leaf" and site.key in known:
            state = known[site.key]
        elif site.kind == "leaf":
            start = functools.partial(quantizer.init, site.operand)
            state = automatic(start, {"values": leaves[site.key]}, now, like=leaves[site.key])
        else:
            operand = layer_operand(site)

            def start(states, key, site=site, operand=operand, quantizer=quantizer):
                return quantizer.init(operand, finished(site, states), key)

            states, keys = statistics[row.path][site.role], now
            for n in row.stack:
                keys = jax.vmap(lambda k, n=n: jax.random.split(k, n))(keys) if keys.ndim else jax.random.split(keys, n)
                start = jax.vmap(start)
            state = start(states, keys)
        put(parts, site.key, site.role, state)
    return marked(plan, parts)


def abstract_state(plan: Plan) -> QState:
    """Returns the shapes and dtypes of a state. For tracing: layers alike are traced once, in all plans."""
    parts: QState = {"learn": {}, "fixed": {}}
    for row, site in quantized_sites(plan):
        is_leaf = site.kind == "leaf"
        operand, stack = (site.operand, ()) if is_leaf else (layer_operand(site), row.stack)
        shapes = _abstract(quantizer_of(site), operand, is_weight=site.is_weight)
        stacked = jax.tree.map(lambda x, stack=stack: jax.ShapeDtypeStruct((*stack, *x.shape), x.dtype), shapes)
        put(parts, site.key, site.role, stacked)
    return parts


@functools.lru_cache(maxsize=4096)
def _abstract(quantizer: Quantizer, operand: Operand, *, is_weight: bool) -> QState:
    def start() -> QState:
        if is_weight:
            stats: dict[str, Any] = {"values": jnp.zeros(operand.shape, operand.dtype)}
        else:
            stats = {s.name: s.finish(s.init(operand)) for s in quantizer.needs(operand)}
        return quantizer.init(operand, stats, jax.random.key(0))

    return jax.eval_shape(start)


def after_batch(site: Site, state: Any, stats: Any, x: Any = None) -> Any:
    """Returns the state after one training batch: statistics of this batch, given to the quantizer's ``update``."""
    quantizer = quantizer_of(site)
    if stats is None and has_no_values(x):
        return state
    if stats is None:
        operand = layer_operand(site)
        if site.is_weight:
            stats = {"values": x}
        else:
            x = jax.lax.stop_gradient(x)
            stats = {s.name: s.finish(s.update(s.init(operand), x, operand)) for s in quantizer.needs(operand)}
    return quantizer.update(state, stats)


def collected(plan: Plan, leaves: Mapping[str, Any], sites: Mapping[str, Any]) -> QState:
    """Returns the state of a plan from those of parameters, by key, and of what the walk carries, by path and role."""
    parts: dict[str, Any] = {"learn": {}, "fixed": {}}
    for row, site in quantized_sites(plan):
        put(parts, site.key, site.role, leaves[site.key] if site.kind == "leaf" else sites[row.path][site.role])
    return marked(plan, parts)
