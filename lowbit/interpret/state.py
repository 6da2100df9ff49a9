"""The state of all sites as one pytree: ``{"learn": {key: {role: ...}}, "fixed": {key: {role: ...}}}``."""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.paths import leaf_path
from lowbit.core.spec import Operand
from lowbit.core.statistics import Statistic
from lowbit.plan.rows import Plan, Row, Site, Step

QState = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Values(Statistic):
    """The values themselves, of the last batch: what a derived weight starts from."""

    @property
    def name(self) -> str:
        return "values"

    def init(self, operand: Operand) -> Any:
        return jnp.zeros(operand.shape, operand.dtype)

    def update(self, state: Any, x: Array) -> Any:
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
        return {part: qstate[part][key][role] for part in ("learn", "fixed")}
    except (KeyError, TypeError):
        known = sorted(qstate["learn"]) if isinstance(qstate, Mapping) and "learn" in qstate else "no such tree"
        raise ValueError(
            f"qstate has no state for the {role} of {key!r}; it has {known}: was it made by lb.init for this plan?"
        ) from None


def put(parts: QState, key: str, role: str, state: QState) -> None:
    """Sets the state of one site in a tree under construction."""
    for part in ("learn", "fixed"):
        parts.setdefault(part, {}).setdefault(key, {})[role] = state[part]


def site_key(key: Array, name: str) -> Array:
    """Returns a key for a named consumer: a new consumer moves no other stream."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def has_no_values(x: Any) -> bool:
    """Returns whether an array is empty: a batch of nothing says nothing about ranges. Symbolic lengths count as some."""
    return any(isinstance(n, int) and n == 0 for n in x.shape)


def statistics_of(site: Site) -> tuple[Statistic, ...]:
    """Returns what is folded at a site that the walk carries."""
    return (Values(),) if site.is_weight else quantizer_of(site).needs(layer_operand(site))


def empty_statistics(plan: Plan) -> dict[str, Any]:
    """Returns the statistics of every walked site before the first batch: ``{path: {role: {name: state}}}``."""
    found: dict[str, Any] = {}
    for row, site in walked_sites(plan):
        states = {s.name: s.init(layer_operand(site)) for s in statistics_of(site)}
        if row.stack:
            states = jax.tree.map(lambda x, stack=row.stack: jnp.broadcast_to(x, (*stack, *x.shape)), states)
        states = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), states)  # not weakly typed: that would compile twice
        found.setdefault(row.path, {})[site.role] = states
    return found


def finished(site: Site, states: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the finished statistics of one site (one layer)."""
    return {s.name: s.finish(states[s.name]) for s in statistics_of(site)}


def initial_state(plan: Plan, params: Any, statistics: Mapping[str, Any], key: Array) -> QState:
    """Returns the state of every site from parameters and folded statistics."""
    leaves = {leaf_path(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    parts: QState = {"learn": {}, "fixed": {}}
    for row, site in quantized_sites(plan):
        quantizer, now = quantizer_of(site), site_key(key, f"{site.key}/{site.role}")
        if site.kind == "leaf":
            state = quantizer.init(site.operand, {"values": leaves[site.key]}, now)
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
    return parts


def abstract_state(plan: Plan, params: Any) -> QState:
    """Returns a state of the right structure and shapes; its values mean nothing. For tracing."""
    return initial_state(plan, params, empty_statistics(plan), jax.random.key(0))
