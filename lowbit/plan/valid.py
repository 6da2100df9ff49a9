"""A plan that was read from a file: every field of the type and range that `lowbit.bind` gives it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .geometry import Dot, Geometry, Lookup
from .rows import Plan, Row, Site, Step

ROLES = ("weight", "input", "lhs", "rhs", "output")
KINDS = ("leaf", "derived", "constant", "input", "mixed", "grid")
PRIMITIVES = ("dot_general", "conv_general_dilated", "gather")
_MOST = 1 << 60


def check(plan: Plan) -> None:
    """Raises ValueError, naming the field, where a plan says what none says."""
    for i, row in enumerate(plan.rows):
        _row(row, f"rows[{i}]")
    for i, step in enumerate(plan.steps):
        _step(step, f"steps[{i}]")
    for i, leaf in enumerate(plan.uncovered):
        _field(f"uncovered[{i}].path", leaf.path, _is_word, "a path")
        _field(f"uncovered[{i}].nbytes", leaf.nbytes, _is_count, "a number of bytes")
        _field(f"uncovered[{i}].uses", leaf.uses, _is_words, "names of primitives")
    paths = [row.path for row in plan.rows]
    for i, row in enumerate(plan.rows):
        _field(f"rows[{i}].producers", row.producers, lambda x: _is_words(x) and set(x) <= set(paths), "paths of rows")
    _field("rows", paths, lambda x: len(set(x)) == len(x), "one row per path")
    _field("dropped", plan.dropped, _is_words, "paths")
    _field("unseen", plan.unseen, lambda x: all(_is_words(pair) for pair in x), "pairs of texts")
    _field(
        "rounding",
        plan.rounding,
        lambda x: isinstance(x, str) and bool(x) == bool(plan.steps),
        "a named rounding, where there are steps",
    )
    known = {step.path for step in plan.steps}
    for i, step in enumerate(plan.steps):
        places = (*step.inputs, step.grid) if step.grid else step.inputs  # indices have no grid
        _field(f"steps[{i}]", places, lambda x: known.issuperset(x), "paths of steps")


def _field(name: str, value: Any, is_right: Callable[[Any], bool], allowed: str) -> None:
    if not is_right(value):
        raise ValueError(f"the plan's {name} must be {allowed}, got {value!r:.80}")


def _is_word(x: Any) -> bool:
    return isinstance(x, str)


def _is_words(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(word, str) for word in x)


def _is_count(x: Any) -> bool:
    return type(x) is int and 0 <= x < _MOST


def _is_counts(x: Any) -> bool:
    return isinstance(x, tuple) and all(_is_count(n) for n in x)


def _is_axes(x: Any, rank: int) -> bool:
    return _is_counts(x) and len(set(x)) == len(x) and all(i < rank for i in x)


def _rank(site: Site | None) -> int:
    return 0 if site is None else len(site.operand.shape)


def _is_dtype(x: Any) -> bool:
    try:
        return isinstance(x, str) and jnp.dtype(x).name == x
    except TypeError:
        return False


def _row(row: Row, name: str) -> None:
    for field in ("path", "rule", "source", "own_gradient"):
        _field(f"{name}.{field}", getattr(row, field), _is_word, "text")
    _field(f"{name}.primitive", row.primitive, lambda x: x in PRIMITIVES, f"one of {', '.join(PRIMITIVES)}")
    _field(f"{name}.stack", row.stack, _is_counts, "lengths of scans")
    _field(f"{name}.feature_groups", row.feature_groups, lambda x: _is_count(x) and x > 0, "a positive integer")
    _field(f"{name}.batch", row.batch, lambda x: _is_axes(x, _rank(row.weight)), "distinct axes of the weight")
    _field(f"{name}.macs", row.macs, _is_count, "a number of multiply-adds")
    _field(f"{name}.sites", row.sites, lambda x: len(x) == 2, "two operands")
    for i, site in enumerate(row.sites):
        _site(site, f"{name}.sites[{i}]")
    if row.geometry is not None:
        _geometry(row, row.geometry, f"{name}.geometry")


def _geometry(row: Row, geometry: Geometry, name: str) -> None:
    left, right = (len(site.shape) for site in row.sites)
    if isinstance(geometry, Lookup):
        _field(f"{name}.picked", geometry.picked, lambda x: _is_axes(x, left), "distinct axes of the table")
        return
    if isinstance(geometry, Dot):
        for field in ("contract", "batch"):
            _field(f"{name}.{field}", getattr(geometry, field), lambda x: _is_paired(x, left, right), "axes in pairs")
        return
    for field, rank in (("lhs_spec", left), ("rhs_spec", right), ("out_spec", left)):
        is_order = lambda x, rank=rank: _is_axes(x, rank) and len(x) == rank  # noqa: E731
        _field(f"{name}.{field}", getattr(geometry, field), is_order, f"the axes of {rank}, in an order")
    for field in ("strides", "lhs_dilation", "rhs_dilation"):
        is_spatial = lambda x: _is_counts(x) and len(x) == left - 2 and all(x)  # noqa: E731
        _field(f"{name}.{field}", getattr(geometry, field), is_spatial, f"{left - 2} positive integers")
    _field(f"{name}.padding", geometry.padding, lambda x: _is_padding(x, left - 2), f"{left - 2} pairs of integers")
    for field in ("feature_groups", "batch_groups"):
        _field(f"{name}.{field}", getattr(geometry, field), lambda x: _is_count(x) and x > 0, "a positive integer")


def _is_paired(x: Any, left: int, right: int) -> bool:
    return (
        isinstance(x, tuple)
        and len(x) == 2
        and _is_axes(x[0], left)
        and _is_axes(x[1], right)
        and len(x[0]) == len(x[1])
    )


def _is_padding(x: Any, rank: int) -> bool:
    if not isinstance(x, tuple) or len(x) != rank:
        return False
    return all(isinstance(p, tuple) and len(p) == 2 and all(type(n) is int and abs(n) < _MOST for n in p) for p in x)


def _step(step: Step, name: str) -> None:
    for field in ("path", "kind", "grid", "source"):
        _field(f"{name}.{field}", getattr(step, field), _is_word, "text")
    for field in ("inputs", "absorbed", "scope"):
        _field(f"{name}.{field}", getattr(step, field), _is_words, "texts")
    if step.site is not None:
        _site(step.site, f"{name}.site")


def _site(site: Site, name: str) -> None:
    operand = site.operand
    rank = len(operand.shape)
    _field(f"{name}.role", site.role, lambda x: x in ROLES, f"one of {', '.join(ROLES)}")
    _field(f"{name}.kind", site.kind, lambda x: x in KINDS, f"one of {', '.join(KINDS)}")
    _field(f"{name}.key", site.key, _is_word, "a path")
    _field(f"{name}.leaves", site.leaves, _is_words, "paths")
    _field(f"{name}.operand.shape", operand.shape, _is_counts, "lengths of axes")
    _field(f"{name}.operand.dtype", operand.dtype, _is_dtype, "a dtype's name")
    _field(f"{name}.operand.contract", operand.contract, lambda x: _is_axes(x, rank), f"distinct axes below {rank}")
    _field(f"{name}.operand.stack", operand.stack, lambda x: _is_count(x) and x <= rank, f"at most {rank}")
    _field(f"{name}.operand.is_weight", operand.is_weight, lambda x: type(x) is bool, "true or false")
    _field(f"{name}.quantizer", site.text, _is_word, "text")
    _field(f"{name}.own_code", site.is_lost, lambda x: type(x) is bool, "true or false")
    is_length = lambda n: n is None or _is_count(n)  # noqa: E731
    _field(f"{name}.shape", site.shape, lambda x: isinstance(x, tuple) and all(map(is_length, x)), "lengths, or null")
    _field(f"{name}.flipped", site.flipped, lambda x: _is_axes(x, rank), f"distinct axes below {rank}")
    _field(f"{name}.axes", site.axes, lambda x: x == () or _is_made_up(x, len(site.shape)), "parts of leaf axes")
    if site.spec is not None:
        site.spec.granularity.blocks(operand)


def _is_made_up(x: Any, rank: int) -> bool:
    if not isinstance(x, tuple) or len(x) != rank:
        return False
    atoms = [atom for parts in x if isinstance(parts, tuple) for atom in parts]
    return all(isinstance(parts, tuple) for parts in x) and all(
        isinstance(atom, tuple) and len(atom) == 2 and all(type(n) is int and abs(n) < _MOST for n in atom)
        for atom in atoms
    )
