"""Pairs: scaled by any positive factors, every model is what it was; scaled on one side alone, it is not."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.paths import flatten
from lowbit.program.flow import INLINED
from lowbit.program.pairs import pairs
from lowbit.program.read import read
from tests.interpret.zoo import CASES, Case
from tests.program.nets import NETS, carried, gated, grouped, mobile
from tests.values import normal


def find(case: Case, **options):
    """Pairs by parameter, the parameters' paths, and the pairs themselves."""
    paths, leaves, tree = flatten(case.params)
    rest, rest_tree = jax.tree.flatten(case.args)

    def flat(*values):
        args = jax.tree.unflatten(rest_tree, values[len(paths) :])
        return jax.tree.leaves(case.fn(jax.tree.unflatten(tree, values[: len(paths)]), *args))

    return paths, pairs(read(jax.make_jaxpr(flat)(*leaves, *rest), fixed=len(paths), inlined=INLINED), **options)


def scaled(params, ends):
    """Parameters times factors by channel, written out entry by entry."""
    _, leaves, tree = flatten(params)
    leaves = [np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf for leaf in leaves]
    for end, factors in ends:
        channels = np.broadcast_to(end.channels, leaves[end.leaf].shape)
        leaves[end.leaf] = leaves[end.leaf] * np.where(channels < 0, 1.0, factors[channels])
    kinds = [leaf.dtype for leaf in jax.tree.leaves(params)]
    return jax.tree.unflatten(tree, [jnp.asarray(x, kind) for x, kind in zip(leaves, kinds, strict=True)])


def _differs(case: Case, params) -> float:
    """How far results are from the model's, relative to their largest."""
    run = _jitted(case.fn)
    worst = 0.0
    for a, b in zip(
        jax.tree.leaves(run(case.params, *case.args)), jax.tree.leaves(run(params, *case.args)), strict=True
    ):
        if jnp.issubdtype(a.dtype, jnp.floating):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst


@functools.cache
def _jitted(fn):
    return jax.jit(fn)


def _check(case: Case) -> None:
    _, got = find(case)
    for i, pair in enumerate(got.found):
        # Powers of two: nothing is rounded on the way, so that what differs is no rounding.
        factors = np.exp2(np.random.default_rng(i).integers(-2, 3, pair.size) * 1.0)
        factors[0] = 4.0
        made = [(end, factors) for end in (*pair.makers, *pair.scaled)]
        taken = [(end, 1 / factors) for end in pair.takers]
        assert _differs(case, scaled(case.params, [*made, *taken])) < 1e-5
        if pair.is_linear:
            signs = np.where(np.arange(pair.size) % 2, 1.0, -1.0)
            both = [(end, signs) for end in (*pair.makers, *pair.scaled, *pair.takers)]
            assert _differs(case, scaled(case.params, both)) < 1e-5
        assert _differs(case, scaled(case.params, made)) > 1e-4  # what was found matters
        assert _differs(case, scaled(case.params, taken)) > 1e-4


def _named(case: Case, **options):
    paths, got = find(case, **options)

    def names(ends):
        return {paths[end.leaf] if end.leaf >= 0 else "bound" for end in ends}

    return [(names(p.makers), names(p.takers), names(p.scaled), p.size) for p in got.found]


@pytest.mark.parametrize("name", CASES)
def test_the_zoo_scaled_is_the_zoo(name):
    _check(CASES[name]())


@pytest.mark.parametrize("name", NETS)
def test_networks_scaled_are_the_same(name):
    _check(NETS[name]())


def test_what_is_found():
    assert _named(mobile()) == [
        ({"stem/w", "down/w"}, {"up/w", "head/w"}, {"stem/b", "down/b"}, 4),
        ({"up/w"}, {"deep/w"}, {"up/b"}, 12),
        ({"deep/w"}, {"down/w"}, {"deep/b"}, 12),
    ]
    assert _named(grouped()) == [({"a"}, {"g"}, set(), 4), ({"b"}, {"g"}, set(), 4), ({"g"}, {"out"}, set(), 8)]
    layers = {k: f"layers/{k}" for k in gated().params["layers"]}
    assert _named(gated()) == [
        ({layers["norm1"]}, {layers["q"], layers["k"], layers["v"]}, set(), 32),
        ({layers["v"]}, {layers["o"]}, set(), 32),
        ({layers["norm2"]}, {layers["gate"], layers["up"]}, set(), 32),
        ({layers["up"]}, {layers["down"]}, set(), 48),
        ({"norm"}, {"head"}, set(), 8),
    ]
    assert _named(carried()) == [({"in", "down"}, {"up", "out"}, set(), 6), ({"up"}, {"down"}, set(), 21)]


def test_what_stands_in_the_way_is_named_with_its_line():
    paths, got = find(gated())
    reasons = {paths[b.leaf]: b.reason for b in got.blocked}
    assert reasons["layers/q"].name == "dot_general"
    assert reasons["layers/gate"].name == "logistic"
    assert reasons["embed"].name == "mul"
    assert reasons["head"].name == "result"
    file, line = reasons["layers/q"].source.split(":")
    assert file == "nets.py"
    assert int(line) > gated.__code__.co_firstlineno


def test_a_clip_is_in_the_way_unless_its_bound_may_move():
    params = {"a": normal(60, 5, 6), "b": normal(61, 6, 3)}
    case = Case(lambda p, x: jax.nn.relu6(x @ p["a"]) @ p["b"], params, (normal(62, 4, 5),), 2)
    paths, got = find(case)
    assert not got.found
    assert [paths[b.leaf] for b in got.blocked] == ["a", "b"]
    assert got.blocked[0].reason.name == "min"
    assert _named(case, has_bounds=True) == [({"a"}, {"b"}, {"bound"}, 6)]


def test_ranges_by_channel_are_a_loop_over_entries():
    paths, got = find(grouped())
    pair = next(p for p in got.found if {paths[e.leaf] for e in p.makers} == {"g"})
    _, leaves, _ = flatten(grouped().params)
    for end in (*pair.makers, *pair.takers):
        magnitudes = np.abs(np.asarray(leaves[end.leaf]))
        want = np.zeros(pair.size, np.float32)
        channels = np.broadcast_to(end.channels, magnitudes.shape)
        for place in np.ndindex(magnitudes.shape):
            if channels[place] >= 0:
                want[channels[place]] = max(want[channels[place]], magnitudes[place])
        np.testing.assert_array_equal(end.largest(magnitudes, pair.size), want)
        assert math.isclose(want.max(), magnitudes.max())
