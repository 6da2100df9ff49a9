"""A plan says how operands meet: its data alone, without a jaxpr, computes the operation again in numpy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.plan import valid
from lowbit.plan.costs import costs
from lowbit.plan.geometry import Convolution, Dot, Lookup
from lowbit.plan.serial import from_json, to_json
from tests.values import normal


def _operand(site, leaf):
    """A leaf as the operation takes it: no element moves but by a permutation of its axes."""
    order = [axis for parts in site.axes for axis, _ in parts]
    ones = [i for i, n in enumerate(leaf.shape) if n == 1]
    return np.transpose(np.asarray(leaf, np.float64), [*order, *ones]).reshape(site.shape)


def _dot(geometry, left, right):
    letters = iter("abcdefghijkl")
    one, other = [next(letters) for _ in left.shape], [next(letters) for _ in right.shape]
    for pair in (geometry.contract, geometry.batch):
        for i, j in zip(*pair, strict=True):
            other[j] = one[i]
    paired = [one[i] for i in geometry.batch[0]]
    gone = {*paired, *(one[i] for i in geometry.contract[0])}
    out = [*paired, *(c for c in (*one, *other) if c not in gone)]
    return np.einsum(f"{''.join(one)},{''.join(other)}->{''.join(out)}", left, right)


def _conv(g, left, right):
    x, w = np.transpose(left, g.lhs_spec), np.transpose(right, g.rhs_spec)
    holes = [(n - 1) * d + 1 for n, d in zip(x.shape[2:], g.lhs_dilation, strict=True)]
    wide = np.zeros((*x.shape[:2], *holes))
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in g.lhs_dilation))] = x
    wide = np.pad(wide, [(0, 0), (0, 0), *(tuple(max(n, 0) for n in pair) for pair in g.padding)])
    cuts = [slice(max(-low, 0), n - max(-high, 0)) for (low, high), n in zip(g.padding, wide.shape[2:], strict=True)]
    wide = wide[(slice(None), slice(None), *cuts)]
    reach = [(n - 1) * d + 1 for n, d in zip(w.shape[2:], g.rhs_dilation, strict=True)]
    spots = [range((n - r) // s + 1) for n, r, s in zip(wide.shape[2:], reach, g.strides, strict=True)]
    out = np.zeros((x.shape[0], w.shape[0], *map(len, spots)))
    per_group = w.shape[0] // g.feature_groups
    for o, place in itertools.product(range(w.shape[0]), itertools.product(*spots)):
        group = o // per_group
        windows = [
            slice(i * s, i * s + r, d) for i, s, r, d in zip(place, g.strides, reach, g.rhs_dilation, strict=True)
        ]
        channels = slice(group * w.shape[1], (group + 1) * w.shape[1])
        patch = wide[(slice(None), channels, *windows)]
        out[(slice(None), o, *place)] = (patch * w[o]).reshape(len(x), -1).sum(-1)
    return np.transpose(out, [g.out_spec.index(i) for i in range(out.ndim)])


def _convolution(numbers, **options):
    def fn(p, x):
        return lax.conv_general_dilated(x, p["w"], dimension_numbers=numbers, **options)

    return fn


DOTS = {
    "a transposed weight of three axes": (
        lambda p, x: jnp.einsum("bthd,ohd->bto", x, p["w"]), (5, 3, 4), (2, 6, 3, 4), (None, 6, 3, 4)
    ),
    "experts": (lambda p, x: jnp.einsum("bek,ekn->ebn", x, p["w"]), (3, 4, 5), (2, 3, 4), (None, 3, 4)),
    "a weight on the left": (lambda p, x: p["w"] @ x, (5, 4), (4, 7), (4, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", DOTS)
def test_a_dot_is_its_geometry(name):
    fn, weight, given, shape = DOTS[name]
    params, x = {"w": normal(0, *weight)}, normal(1, *given)
    (row,) = lb.bind(fn, {"**": "w8,a8"}, params, x)
    sites = {site.role: site for site in row.sites}
    assert sites["input"].shape in (shape, tuple(shape[i] for i in (1, 0, 2)[: len(shape)]))
    assert isinstance(row.geometry, Dot)
    values = [_operand(s, params["w"]) if s.is_weight else np.asarray(x, np.float64) for s in row.sites]
    found = _dot(row.geometry, *values)
    wanted = np.asarray(fn(params, x), np.float64)
    np.testing.assert_allclose(np.sort(found, None), np.sort(wanted, None), rtol=1e-5, atol=1e-5)


CONVOLUTIONS = {
    "strided": (("NHWC", "HWIO", "NHWC"), (3, 2, 3, 4), (2, 7, 6, 3), {"window_strides": (2, 1), "padding": "SAME"}),
    "depthwise, with holes": (
        ("NCHW", "OIHW", "NHWC"), (6, 1, 2, 3), (2, 3, 7, 8),
        {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 1), "feature_group_count": 3},
    ),
    "transposed, cut": (
        ("NWC", "WIO", "NWC"), (4, 3, 2), (2, 5, 3),
        {"window_strides": (1,), "padding": ((2, -1),), "lhs_dilation": (2,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_its_geometry(name):
    numbers, kernel, image, options = CONVOLUTIONS[name]
    fn, params, x = _convolution(numbers, **options), {"w": normal(2, *kernel)}, normal(3, *image)
    (row,) = plan = lb.bind(fn, {"**": "w8,a8"}, params, x)
    left, right = row.sites
    batch = numbers[0].index("N")
    assert left.shape == tuple(None if i == batch else n for i, n in enumerate(image))
    assert isinstance(row.geometry, Convolution)
    found = _conv(row.geometry, np.asarray(x, np.float64), _operand(right, params["w"]))
    np.testing.assert_allclose(found, np.asarray(fn(params, x), np.float64), rtol=1e-5, atol=1e-5)
    again = from_json(to_json(plan))[row.path]
    assert (again.geometry, again.sites[0].shape, again.sites[1].axes) == (row.geometry, left.shape, right.axes)
    valid.check(from_json(to_json(plan)))


def test_two_batch_sizes_have_one_plan_and_one_text():
    params = {"e": normal(4, 9, 4), "q": normal(5, 4, 4), "k": normal(6, 4, 4)}

    def fn(p, tokens):
        x = p["e"][tokens]
        return jnp.einsum("btd,bsd->bts", x @ p["q"], x @ p["k"])

    plans = [lb.bind(fn, {"**": "w8,a8"}, params, jnp.zeros((n, 6), jnp.int32)) for n in (2, 3)]
    texts = [
        to_json(dataclasses.replace(plan, rows=tuple(dataclasses.replace(r, macs=0) for r in plan))) for plan in plans
    ]
    assert texts[0] == texts[1]
    lookup, *_, scores = plans[0]
    assert lookup.geometry == Lookup((0,))
    assert [site.shape for site in lookup.sites] == [(9, 4), (None, 6, 1)]
    assert [site.shape for site in scores.sites] == [(None, 6, 4)] * 2


def test_a_scan_over_layers_has_the_shapes_of_one():
    params, x = {"w": normal(7, 3, 4, 4)}, normal(8, 5, 4)
    fn = lambda p, x: lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, p["w"])[0]  # noqa: E731
    (row,) = lb.bind(fn, {"**": "w8,a8"}, params, x)
    assert [site.shape for site in row.sites] == [(None, 4), (4, 4)]
    assert row.sites[1].axes == (((1, 4),), ((2, 4),))


@pytest.mark.parametrize("change", [{"contract": ((5,), (0,))}, {"batch": ((0,), ())}])
def test_a_wrong_geometry_in_a_file_is_named(change):
    params, x = {"w": normal(9, 4, 4)}, normal(10, 2, 4)
    plan = lb.bind(lambda p, x: x @ p["w"], {"**": "w8,a8"}, params, x)
    (row,) = plan
    bad = dataclasses.replace(
        plan, rows=(dataclasses.replace(row, geometry=dataclasses.replace(row.geometry, **change)),)
    )
    with pytest.raises(ValueError, match=r"rows\[0\]\.geometry"):
        valid.check(bad)


def test_costs_are_data_and_rows_say_what_feeds_them():
    """Two heads of attention over a stack of layers: who reads whom, and what each takes, counted by hand."""
    params = {"e": normal(11, 9, 8), "q": normal(12, 3, 8, 8), "k": normal(13, 3, 8, 8), "o": normal(14, 8, 5)}
    tokens = jnp.zeros((2, 6), jnp.int32)

    def fn(p, tokens):
        def layer(x, w):
            scores = jax.nn.softmax(jnp.einsum("btd,bsd->bts", x @ w["q"], x @ w["k"]))
            return x + scores @ x, None

        x, _ = lax.scan(layer, p["e"][tokens], {"q": p["q"], "k": p["k"]})
        return x @ p["o"]

    plan = lb.bind(fn, {"o": "keep", "e": "w4", "**": "w8/channel,a8"}, params, tokens)
    found = {cost.path: cost for cost in costs(plan)}
    assert [*found] == ["e", "q", "k", "dot_0", "dot_1", "o"]
    assert found["q"].producers == ("e", "dot_1")  # the first turn, and every other
    assert set(found["e"].consumers) == {"q", "k", "dot_1", "o"}
    assert found["dot_0"].producers == ("q", "k")
    assert found["dot_1"].consumers == ("q", "k", "dot_1", "o")
    assert found["o"].producers == ("e", "dot_1")
    assert (found["q"].macs, found["q"].bops) == (3 * 12 * 8 * 8, 3 * 12 * 64 * 8 * 8)
    assert (found["q"].code_bits, found["q"].scale_bits) == (3 * 64 * 8, 3 * 8 * 32)
    assert (found["e"].code_bits, found["e"].scale_bits, found["e"].nbytes) == (72 * 4, 9 * 32, 36 + 36)
    assert (found["o"].bops, found["o"].nbytes) == (found["o"].macs * 32 * 32, 8 * 5 * 4)
    assert found["dot_0"].elements == 0
    assert costs(from_json(to_json(plan))) == costs(plan)


def test_a_shared_weight_costs_once():
    params, x = {"w": normal(15, 8, 8)}, normal(16, 2, 8)
    first, second = costs(lb.bind(lambda p, x: (x @ p["w"]) @ p["w"], {"**": "w4,a8"}, params, x))
    assert (first.nbytes, second.nbytes) == (32 + 32, 0)
    assert (first.consumers, second.producers) == (("w@1",), ("w@0",))
