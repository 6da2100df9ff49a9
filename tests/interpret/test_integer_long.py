"""Full-integer plans with 16-bit activations: long sums, curves, whole models, training, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import lowbit as lb
from lowbit.interpret.integer import long
from lowbit.interpret.integer.fixed import ROUNDINGS, fixed_point
from lowbit.interpret.integer.flat import flatten
from lowbit.interpret.trace import trace
from tests.interpret.integer_models import audio_net
from tests.values import normal

from .test_integer_fixed import SHIFTS, WANT

W = {"w": normal(0, 8, 8) * 0.5, "g": 1 + 0.2 * normal(1, 8), "b": 0.3 * normal(2, 8)}
X = normal(3, 3, 5, 8)
SIZE = 64
RUNS = {name: (jax.jit(r.multiply_long), jax.jit(r.shift_words)) for name, r in ROUNDINGS.items()}


def _served(fn, params, *args, rules="w8,aint16", implementations=("reference",), **options):
    """What a plan serves: simulated, and executed with the same bits; the float function's results; the plan."""
    plan = lb.bind(fn, {"**": rules}, params, *args, integer=True, **options)
    wider = [1.05 * x for x in jax.tree.leaves(args)]  # rounded weights may pass the range of the float model
    qstate = lb.init(fn, plan, params, *jax.tree.unflatten(jax.tree.structure(args), wider))
    want = lb.simulate(fn, plan)(params, qstate, *args)
    qparams = lb.pack(plan, params, qstate)
    for implementation in implementations:
        got = lb.execute(fn, plan, implementation=implementation)(qparams, *args)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            np.testing.assert_array_equal(a, b)
    return want, fn(params, *args), plan


def _error(got, want):
    return float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want)))


@pytest.mark.parametrize("name", list(ROUNDINGS))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_long_sums_are_rounded_as_their_names_say(name, data):
    """Against Python's integers of any size. The multipliers are float32 numbers, as plans have them."""
    one = st.tuples(st.integers(-(2**30), 2**30), st.integers(-(2**31) + 1, 2**31 - 1)) | st.tuples(
        st.integers(-3, 3), st.integers(-300, 300)
    )
    accs = data.draw(st.lists(one, min_size=SIZE, max_size=SIZE))
    reals = st.floats(2.0**-30, 4.0, width=32) | st.sampled_from([0.5, 2.0**-12, 2.0**-20, 3e6])
    pairs = [fixed_point(m) for m in data.draw(st.lists(reals, min_size=SIZE, max_size=SIZE))]
    (high, low), (q, right) = ([np.array(x, np.int32) for x in zip(*rows, strict=True)] for rows in (accs, pairs))
    totals = [256 * h + lo for h, lo in accs]
    multiply, shift = RUNS[name]
    assert np.asarray(multiply((high, low), q, right)).tolist() == [
        max(min(_want(name, t, *p), 2**30), -(2**30)) for t, p in zip(totals, pairs, strict=True)
    ]
    k = np.array(data.draw(st.lists(st.integers(1, 31), min_size=SIZE, max_size=SIZE)), np.int32)
    words = tuple(
        np.array([t >> 32 if i == 0 else (t + 2**31) % 2**32 - 2**31 for t in totals], np.int32) for i in (0, 1)
    )
    assert np.asarray(shift(words, k)).tolist() == [
        max(min(SHIFTS[name](t, int(s)), 2**30), -(2**30)) for t, s in zip(totals, k, strict=True)
    ]


def _want(name, acc, q, right):
    if name != "gemmlowp_double":
        return WANT[name](acc, q, max(right, -22))
    first = 31 - max(-right, 0)
    once = (acc * q + (1 << (first - 1))) >> first if first > 0 else acc * q << -first
    return SHIFTS[name](once, max(right, 0)) if right > 0 else once


@pytest.mark.parametrize("carried", [True, False])
def test_a_sum_of_16_bit_codes_is_exact(carried):
    """Extreme codes over a padded, strided convolution and over two 16-bit operands, against numpy's int64."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.choice([-32768, 32767, 255, -256, 0, 128], (2, 9, 600)), jnp.int16).at[0].set(-32768)
    w = jnp.asarray(rng.integers(-128, 128, (3, 600, 4)), jnp.int8).at[..., 0].set(-128)

    def conv(a, b):
        return lax.conv_general_dilated(a, b, (2,), [(1, 2)], dimension_numbers=("NWC", "WIO", "NWC"))

    def dot(a, b):
        return jnp.einsum("bqc,bkc->bqk", a, b)

    def value(found):
        return [256 * int(h) + int(lo) for h, lo in zip(*(np.asarray(part).ravel() for part in found), strict=True)]

    padded = np.pad(np.asarray(x, np.int64), ((0, 0), (1, 2), (0, 0)))
    windows = np.stack([padded[:, i : i + 3] for i in range(0, 10, 2)], 1)
    want = np.einsum("ntkc,kco->nto", windows, np.asarray(w, np.int64)).ravel().tolist()
    assert value(_accumulated(conv, x, w, 128.0, carried=carried)) == want
    assert max(map(abs, want)) > 2**32
    few = x[..., :250]
    want = np.einsum("bqc,bkc->bqk", *[np.asarray(few, np.int64)] * 2).ravel().tolist()
    assert value(_accumulated(dot, few, few, 32768.0, carried=carried)) == want


def _accumulated(fn, left, right, reach, *, carried):
    floats = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (left, right)]
    equation = next(
        e for e in flatten(trace(lambda p, a, b: fn(a, b), {}, floats, {})).equations if "general" in e.name
    )
    zeros = [jnp.int32(0)] * 2
    return long.multiply_long(equation, [left, right], zeros, [32768.0, reach], carried=carried)


FUNCTIONS = {  # and the largest third derivative
    "tanh": (jnp.tanh, 2.0),
    "sigmoid": (jax.nn.sigmoid, 0.125),
    "gelu": (jax.nn.gelu, 1.2),
    "leaky relu": (lambda x: jnp.where(x > 0, x, 0.01 * x), 0.0),
    "exp of a negative": (lambda x: jnp.exp(-jnp.abs(x)), 1.0),
}


@pytest.mark.parametrize("reach", [1.0, 8.0, 40.0])
def test_a_curve_is_within_its_bound(reach):
    """Half a step for the ends of a piece, half for the result, an eighth for the bend, h**3 / 125 of the third derivative.

    The last is what a parabola through three points h / 2 apart leaves: h**3 / (72 sqrt(3)). Kinks are at 0, between pieces.
    """
    x = jnp.linspace(-reach, reach, 2001)[None]

    def fn(p, x):
        return x[:, :2] @ p["w"], *(function(x) for function, _ in FUNCTIONS.values())

    (_, *found), _, plan = _served(fn, {"w": jnp.eye(2)}, x)
    assert [step.kind for step in plan.steps].count("table") == len(FUNCTIONS)
    given = 1.05 * reach / 32767
    rounded = jnp.round(x / given) * given  # the argument is on a grid too
    for (function, third), got in zip(FUNCTIONS.values(), found, strict=True):
        made = float(jnp.max(jnp.abs(function(1.05 * x)))) / 32767
        bound = 1.125 + third * (128 * given) ** 3 / (72 * 3**0.5) / made
        error = float(jnp.max(jnp.abs(got - function(rounded)))) / made
        assert error <= bound + 0.05  # float32 rounds: 2**-20 of 2**15 steps


def test_every_kind_of_node_keeps_16_bits():
    """Weights that are on their grid: what is left is the grids' own error, a few steps of 2**-15."""
    w = jnp.clip(jnp.round(40 * W["w"]), -127, 127).at[0].set(127.0) / 64

    def fn(p, x):
        h = jnp.tanh(x @ p["w"] + p["b"])
        h = jax.nn.relu(h - x)
        h = jnp.maximum(h * p["g"], 0.5 * x) * x
        y = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 1), (1, 1, 1), "VALID")
        return jnp.concatenate([y, x[:, :1]], 1).mean(1) @ p["w"]

    got, want, _ = _served(fn, {**W, "w": w}, X, rounding="gemmlowp_double", implementations=(None, "reference"))
    assert _error(got, want) < 12 * 2.0**-15


def test_both_operands_may_have_16_bits_and_layers_may_differ():
    def fn(p, x):
        q = x @ p["w"]
        return jnp.einsum("bqc,bkc->bqk", q, x) @ p["v"]

    params = {**W, "v": 0.5 * normal(5, 5, 4)}
    got, want, _ = _served(fn, params, X)
    assert _error(got, want) < 0.02
    plan = lb.bind(fn, {"v": "w8,a8", "**": "w8,aint16"}, params, X, integer=True)
    assert [site.spec.format.bits for site in plan.grids().values() if site.spec is not None] == [16, 16, 8, 8]
    qstate = lb.init(fn, plan, params, X)
    got = lb.execute(fn, plan)(lb.pack(plan, params, qstate), X)
    np.testing.assert_array_equal(got, lb.simulate(fn, plan)(params, qstate, X))


@pytest.mark.slow
def test_an_audio_net_keeps_the_error_of_its_weights():
    case = audio_net()
    plain = lb.bind(case.fn, {"**": "w8"}, case.params, *case.args)
    weights_only = lb.simulate(case.fn, plain)(
        case.params, lb.init(case.fn, plain, case.params, *case.args), *case.args
    )
    got, want, _ = _served(case.fn, case.params, *case.args)
    assert _error(got, weights_only) < 0.02 * _error(want, weights_only)


def test_training_through_16_bits():
    def fn(p, x):
        return (jnp.tanh(x @ p["w"] + p["b"]) * x + x).mean(1) @ p["w"]

    params = {name: W[name] for name in ("w", "b")}
    plan = lb.bind(fn, {"**": lb.lsq("w4,aint16")}, params, X, integer=True)
    qstate = lb.init(fn, plan, params, X)
    run = lb.simulate(fn, plan, train=True)

    def loss(params, learn):
        return jnp.mean(run(params, {**qstate, "learn": learn}, X)[0] ** 2)

    grads = jax.grad(loss, (0, 1))(params, qstate["learn"])
    assert all(bool(jnp.all(jnp.isfinite(g))) and bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads))


def test_a_bias_may_pass_32_bits():
    """A channel of tiny weights, a large bias: 2**33 steps of the accumulator."""
    w = jnp.ones((8, 2)).at[:, 1].set(1e-7)
    got, want, _ = _served(lambda p, x: x @ p["w"] + p["b"], {"w": w, "b": jnp.array([0.3, 3.0])}, X)
    assert _error(got, want) < 2.0**-14


def _causal(p, x):
    mask = np.tril(np.ones((5, 5), bool))
    scores = jnp.where(mask, jnp.einsum("bqc,bkc->bqk", x @ p["w"], x), -1e9)
    return jax.nn.softmax(scores, -1)


ROWS = {
    "softmax": lambda p, x: jax.nn.softmax(4.0 * x @ p["w"], -1),
    "masked softmax": _causal,
    "layer norm": lambda p, x: _norm(x @ p["w"] + p["b"]) * p["g"],
    "layer norm with a large epsilon": lambda p, x: _norm(x @ p["w"], 2.0),
    "rms norm": lambda p, x: x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) + 0.0 * x @ p["w"],
}


def _norm(x, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps)


@pytest.mark.filterwarnings(
    "ignore:.*held nothing but 0"
)  # a norm is the whole of its network, beside a product with zeros
@pytest.mark.parametrize("name", ROWS)
def test_rows_keep_16_bits(name):
    """Rows of ordinary, of tiny (below the epsilon) and of equal values; weights on their grid."""
    w = jnp.clip(jnp.round(40 * W["w"]), -127, 127).at[0].set(127.0) / 64
    x = X.at[0, 0].multiply(1e-3).at[0, 1].set(0.0)
    got, want, plan = _served(ROWS[name], {**W, "w": w}, x)
    assert {"softmax", "norm"} & {step.kind for step in plan.steps}
    near = _error(got[:, 2:], want[:, 2:]) < 8 * 2.0**-15
    assert near, _error(got[:, 2:], want[:, 2:])
    # a row of few steps is rounded before it is stretched: its own error, not more than a few of its own steps
    assert bool(jnp.all(jnp.abs(got[0, :2] - want[0, :2]) < 0.15))


def test_what_16_bits_cannot_do_is_refused():
    wide = {"w": jax.ShapeDtypeStruct((70000, 1), jnp.float32)}
    with pytest.raises(ValueError, match=r"w .*: the sum of 70000 products .* passes 38 bits; .* adds up to 65536"):
        _bind(lambda p, x: x @ p["w"], wide, 1, 70000)
    with pytest.raises(ValueError, match=r"sum at .* is over 40000 codes of 16 bits, and holds 32768"):
        _bind(lambda p, x: x.sum(0) @ p["w"], W, 40000, 8)
    with pytest.raises(ValueError, match=r"softmax at .* is over 9000 codes of 16 bits, and holds 8192"):
        _bind(lambda p, x: jax.nn.softmax(x, 0) @ p["w"], W, 9000, 8)
    for rule, words in {"w8,aint16/affine": "have no zero point", "wint16,a8": "16 bits are for inputs"}.items():
        with pytest.raises(ValueError, match=words):
            _bind(lambda p, x: x @ p["w"], W, 3, 8, rule=rule)


def _bind(fn, params, *shape, rule="w8,aint16"):
    return lb.bind(fn, {"**": rule}, params, jax.ShapeDtypeStruct(shape, jnp.float32), integer=True)
