"""Pairs: scaled by any positive factors, every model is what it was; scaled on one side alone, it is not."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowbit.core.paths import flatten
from lowbit.program.flow import INLINED
from lowbit.program.pairs import pairs
from lowbit.program.read import read
from tests.interpret.zoo import CASES, Case
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


def _conv(x, w, stride=1, **options):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def mobile() -> Case:
    """Expansion, depthwise, projection, a residual sum, a pool, a head: of relu."""
    shapes = {"stem": (3, 3, 3, 4), "up": (1, 1, 4, 12), "deep": (3, 3, 1, 12), "down": (1, 1, 12, 4), "head": (4, 5)}
    params = {k: {"w": normal(i, *s), "b": normal(20 + i, s[-1])} for i, (k, s) in enumerate(shapes.items())}

    def fn(p, x):
        x = jax.nn.relu(_conv(x, p["stem"]["w"], 2) + p["stem"]["b"])
        h = jax.nn.relu(_conv(x, p["up"]["w"]) + p["up"]["b"])
        h = jax.nn.relu(_conv(h, p["deep"]["w"], feature_group_count=12) + p["deep"]["b"])
        x = x + _conv(h, p["down"]["w"]) + p["down"]["b"]
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return x.mean((1, 2)) @ p["head"]["w"] + p["head"]["b"]

    return Case(fn, params, (normal(1, 2, 8, 8, 3),), 5)


def grouped() -> Case:
    """Two branches side by side, a shuffle of channels, a grouped convolution of two outputs a group and more."""
    params = {"a": normal(2, 5, 4), "b": normal(3, 5, 4), "g": normal(4, 3, 3, 2, 8), "out": normal(5, 8, 3)}

    def fn(p, x):
        h = jnp.concatenate([jax.nn.relu(x @ p["a"]), jnp.abs(x @ p["b"])], -1)
        h = h.reshape(*h.shape[:3], 2, 4).swapaxes(3, 4).reshape(h.shape)
        return jnp.maximum(_conv(h, p["g"], feature_group_count=4), 0.0).sum((1, 2)) @ p["out"]

    return Case(fn, params, (normal(6, 2, 4, 4, 5),), 4)


def gated() -> Case:
    """RMS norms with gains, two heads of queries to one of keys and values, a gated feed-forward; four layers in a scan."""
    d, hidden, layers = 8, 12, 4
    shapes = {
        "norm1": (d,), "q": (d, 4, 4), "k": (d, 2, 4), "v": (d, 2, 4), "o": (4, 4, d), "norm2": (d,), "gate": (d, hidden),
        "up": (d, hidden), "down": (hidden, d),
    }  # fmt: skip
    stacked = {k: 0.5 * normal(i, layers, *s) + float(len(s) == 1) for i, (k, s) in enumerate(shapes.items())}
    params = {
        "layers": stacked,
        "embed": normal(30, 11, d),
        "norm": 1.0 + 0.1 * normal(31, d),
        "head": normal(32, d, 11),
    }

    def rms(x, gain):
        return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    def layer(x, p):
        h = rms(x, p["norm1"])
        q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
        k, v = (jnp.repeat(y, 2, 2) for y in (k, v))
        scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / 2.0)
        x = x + jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, v), p["o"])
        h = rms(x, p["norm2"])
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"], None

    def fn(p, tokens):
        x = lax.scan(layer, p["embed"][tokens], p["layers"])[0]
        return rms(x, p["norm"]) @ p["head"]

    return Case(fn, params, (jnp.asarray([[1, 5, 10, 3], [0, 2, 3, 7]]),), 12)


def carried() -> Case:
    """A stream that a scan of layers carries, without a norm: one set of channels for all layers."""
    params = {
        "in": normal(40, 5, 6),
        "up": 0.3 * normal(41, 3, 6, 7),
        "down": 0.3 * normal(42, 3, 7, 6),
        "out": normal(43, 6, 2),
    }

    def fn(p, x):
        def layer(x, w):
            return x + jax.nn.relu(x @ w[0]) @ w[1], None

        return lax.scan(layer, x @ p["in"], (p["up"], p["down"]))[0] @ p["out"]

    return Case(fn, params, (normal(44, 4, 5),), 4)


def leaky() -> Case:
    """A leaky relu as a choice, padding, a part of the channels, a bias on one axis of two, a transposed weight."""
    params = {"a": normal(50, 6, 5), "b": normal(51, 6), "c": normal(52, 4, 8), "d": normal(53, 2, 3)}

    def fn(p, x):
        h = x @ p["a"].T + p["b"]
        h = jnp.where(h >= 0, h, 0.1 * h)
        first, second = h[:, :4], h[:, 4:]
        h = jnp.pad(first, ((0, 0), (2, 2)))
        return h @ p["c"].T + jnp.tanh(second @ p["d"])[:, :1]

    return Case(fn, params, (normal(54, 3, 5),), 3)


NETS = {f.__name__: f for f in (mobile, grouped, gated, carried, leaky)}


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
    line = f"test_pairs.py:{gated.__code__.co_firstlineno}"
    assert reasons["layers/q"].source.split(":")[0] == line.split(":")[0]
    assert int(reasons["layers/q"].source.split(":")[1]) > gated.__code__.co_firstlineno


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
