"""The contracts of every quantizer there is, over cases that are found."""

import dataclasses
import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
from lowbit.core.matrix import MatrixView
from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Format, Granularity
from lowbit.core.statistics import Statistic
from lowbit.formats.lookup import spec_from_text
from tests.contract.cases import bits, carries, cases, factories, parts, some

CASES = pytest.mark.parametrize("case", cases(), ids=lambda case: case.label)
HALF, LOOP, LIMIT, SPECIAL = (
    pytest.mark.parametrize("case", some(turn), ids=lambda case: case.label) for turn in range(4)
)
"""What hangs on a method and on a format, not on the two together: every factory and every format once."""


def test_classes_are_abstract_or_final():
    """Of quantizers, statistics, formats and granularities: what is inherited from cannot be made."""
    for info in pkgutil.walk_packages(lowbit.__path__, "lowbit."):
        if info.name.split(".")[1] in ("core", "formats", "quantizers", "learn", "interpret", "observe"):
            importlib.import_module(info.name)

    def below(cls):
        for sub in cls.__subclasses__():
            if sub.__module__.startswith("lowbit."):
                yield sub
                yield from below(sub)

    for base in (Quantizer, Statistic, Format, Granularity):
        inherited = {parent for cls in below(base) for parent in cls.__bases__ if issubclass(parent, base)}
        assert [cls for cls in inherited if not inspect.isabstract(cls)] == []


def _zero_signs(x):
    """Minus zero is zero: an integer code has one zero."""
    return np.asarray(x) + np.zeros((), np.asarray(x).dtype)


def same(a, b):
    np.testing.assert_array_equal(bits(_zero_signs(a)), bits(_zero_signs(b)))


def test_cases_are_found():
    """Every quantizer module has a factory, and every factory a case."""
    assert len(factories()) >= 2
    covered = {case.label.split("(")[0] for case in cases()}
    assert covered == set(factories())
    made = {type(case.quantizer) for case in cases()}
    found = {
        cls
        for f in factories().values()
        for cls in vars(__import__(f.__module__, fromlist=["_"])).values()
        if isinstance(cls, type) and issubclass(cls, Quantizer) and cls.__module__ == f.__module__
    }
    assert {cls for cls in found if not cls.__name__.startswith("_")} <= made
    for turn in range(4):
        for of in (lambda case: {case.label.split("(")[0]}, parts):
            assert set().union(*map(of, some(turn))) == set().union(*map(of, cases()))


def _check_bits(case, dtype, *, eagerly):
    q, operand = case.quantizer, dataclasses.replace(case.operand, dtype=dtype)
    x, state = case.start(dtype)
    other = jax.random.normal(jax.random.key(9), x.shape)

    def both(x):
        fake = q.fake(state, x, operand)
        return fake, q.encode(state, x, operand), q.encode(state, fake, operand)

    @jax.jit
    def consumed(x):
        fake, encoded, _ = both(x)
        # A sum, not a product and a sum: the consumer's own product may or may not become a fused multiply-add.
        return fake.astype(jnp.float32) + other, encoded.dequantize().astype(jnp.float32) + other

    fake, encoded, again = jax.jit(both)(x)
    assert fake.dtype == x.dtype
    assert jnp.issubdtype(encoded.codes.dtype, jnp.integer)
    assert len(np.unique(np.asarray(encoded.codes))) >= 2
    same(jax.jit(lambda e: e.dequantize())(encoded), fake)
    np.testing.assert_array_equal(*consumed(x))
    levels = encoded.spec.format.decode(encoded.codes)
    np.testing.assert_array_equal(encoded.spec.format.encode(levels), encoded.codes)
    if q.is_projection and carries(q.spec, dtype):
        np.testing.assert_array_equal(again.codes, encoded.codes)
    if eagerly:
        eager_fake, eager_encoded = q.fake(state, x, operand), q.encode(state, x, operand)
        same(eager_fake, fake)
        same(eager_encoded.dequantize(), fake)
        np.testing.assert_array_equal(eager_encoded.codes, encoded.codes)


@CASES
def test_bits(case):
    """encode is an exact cast; what is decoded is what was trained; the grid is idempotent; eagerly and under jit."""
    _check_bits(case, "float32", eagerly=True)


@HALF
def test_bits_of_half_precision(case):
    """The same for bfloat16 or float16, in turn: computed in float32, cast once."""
    _check_bits(case, "bfloat16" if cases().index(case) % 2 else "float16", eagerly=False)


@CASES
def test_grid_is_what_is_rounded_to(case):
    """Every value that `quantize` gives is on the grid, and it is the nearest where the method says so."""
    q, operand = case.quantizer, case.operand
    x, state = case.start()
    view = MatrixView.of(operand)
    grid = q.grid(state, operand, values=x)
    if q.needs_values:
        with pytest.raises(ValueError, match="values"):
            q.grid(state, operand)
    else:
        jax.tree.map(np.testing.assert_array_equal, q.grid(state, operand), grid)
    made = q.quantize(state, x, operand)
    codes, values = (np.asarray(view.matrices(a), np.float64)[0] for a in (made.codes, q.fake(state, x, operand)))
    scale, zero = (
        None if a is None else np.asarray(a, np.float64)[0][np.asarray(grid.group[0])] for a in (grid.scale, grid.zero)
    )
    centered = codes if zero is None else codes - zero
    np.testing.assert_allclose(values, centered * scale, rtol=2.0**-24, atol=0)
    if q.is_nearest:
        levels = np.unique(np.asarray(grid.format.decode(jnp.arange(2**grid.format.bits, dtype=jnp.uint8)), np.float64))
        levels = (
            np.arange(grid.format.low, grid.format.high + 1) if grid.format.is_integer else levels[np.isfinite(levels)]
        )
        w = np.asarray(view.matrices(x), np.float64)[0]
        points = (levels if zero is None else levels - zero[..., None]) * scale[..., None]
        best = np.abs(points - w[..., None]).min(-1)
        slack = 4 * 2.0**-24 * np.maximum(np.abs(w), np.abs(values))  # of the float32 quotient that is rounded
        assert (np.abs(values - w) <= best + slack).all()


@CASES
def test_gradients(case):
    """Gradients reach the values and every learned leaf: finite, and not all zero."""
    q, operand = case.quantizer, case.operand
    x, state = case.start()
    x = x * 1.25  # some values lie outside the range, where trained ranges get their gradient
    weights = jax.random.normal(jax.random.key(3), x.shape)

    def loss(x, learn, key):
        now = {"learn": learn, "fixed": state["fixed"]}
        served = q.fake(now, x, operand)
        trained = q.train(now, x, operand, key=key, step=jnp.int32(3)).dequantize()
        return jnp.sum(weights * served), jnp.sum(weights * trained)

    both = jax.jit(jax.jacrev(lambda *args: jnp.stack(loss(*args, jax.random.key(5))), (0, 1)))(x, state["learn"])
    for index in (0, 1):
        for leaf in jax.tree.leaves(both):
            assert np.isfinite(np.asarray(leaf[index])).all()
            assert np.asarray(leaf[index]).any()


@CASES
def test_state_is_stable(case):
    """init gives learn and fixed; update keeps the tree, its shapes and dtypes; the text of the spec parses back."""
    q = case.quantizer
    x, state = case.start()
    stats = case.stats(x)
    assert set(state) == {"learn", "fixed"}
    for leaf in jax.tree.leaves(state["learn"]):
        assert leaf.dtype == jnp.float32
    after = q.update(state, stats)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert before.shape == now.shape
        assert before.dtype == now.dtype
    assert spec_from_text(q.spec.text, is_weight=case.operand.is_weight) == q.spec
    assert hash(q) == hash(dataclasses.replace(q))


@LOOP
def test_vmap_is_a_loop(case):
    q, operand = case.quantizer, case.operand
    x, state = case.start()
    xs = jnp.stack([x, case.data(seed=1)])
    mapped = jax.jit(jax.vmap(lambda x: q.encode(state, x, operand).dequantize()))(xs)
    for i in range(2):
        same(mapped[i], q.fake(state, xs[i], operand))
    assert (np.asarray(mapped[0]) != np.asarray(mapped[1])).any()


@LIMIT
def test_train_has_a_limit(case):
    """In the limit that a method declares, `train` is `quantize` to the last bit; before it, a method that overrides
    `train` does something else."""
    q, operand = case.quantizer, case.operand
    x, state = case.start()
    key = jax.random.key(5)
    last, last_state, step = q.limit(state, x, operand)
    train = jax.jit(lambda x: last.train(last_state, x, operand, key=key, step=jnp.int32(step)).dequantize())
    same(train(x), last.fake(last_state, x, operand))
    if type(q).train is not Quantizer.train:
        assert type(q).limit is not Quantizer.limit, "a quantizer that overrides train declares its limit"
        y = case.data(seed=4) * 3.0
        now = jax.jit(lambda y: q.train(state, y, operand, key=key, step=jnp.int32(0)).dequantize())(y)
        assert (np.asarray(now) != np.asarray(q.fake(state, y, operand))).any()


@SPECIAL
def test_special_values(case):
    """Zeros stay finite, infinities saturate (dynamic: their block is NaN), NaN stays, tiny values do not vanish."""
    q, operand, x = case.quantizer, case.operand, case.data()

    def run(v):
        state = case.state(v)
        return q.fake(state, v, operand), q.encode(state, v, operand).dequantize()

    several = jnp.stack([jnp.zeros_like(x), x * 1e-20, x.at[0, 0].set(jnp.inf)])
    at_nan = x.at[0, 0].set(jnp.nan)
    state = case.start()[1]
    (fakes, decodeds), with_nan = jax.jit(lambda xs, y: (jax.vmap(run)(xs), q.fake(state, y, operand)))(several, at_nan)
    same(fakes, decodeds)
    assert np.isfinite(fakes[:2]).all()
    if q.spec.format.nearest(jnp.zeros(()), q.spec.format.low, q.spec.format.high) == 0:
        assert not np.asarray(fakes[0]).any()
    # The smallest float16 scale is 2**-24; a quantizer without any state has a fixed range.
    if q.spec.scale.name != "float16" and (q.spec.dynamic or jax.tree.leaves(jax.eval_shape(case.state, x))):
        assert np.asarray(fakes[1]).any()
    if q.spec.dynamic:
        assert np.isnan(fakes[2][0, 0])
    else:
        assert not np.isnan(fakes[2]).any()
    assert np.isnan(with_nan[0, 0])


FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
SHAPES = ((1, 1), (7, 3), (33, 2))
"""Contracted by free axis: alone, odd, and one more than a multiple of most groups."""


@functools.cache
def _round_trip(case, shape):
    operand = dataclasses.replace(case.operand, shape=shape if case.operand.is_weight else shape[::-1])
    case = dataclasses.replace(case, operand=operand)

    @jax.jit
    def run(x):
        state = case.state(x)
        fake, encoded = case.quantizer.fake(state, x, operand), case.quantizer.encode(state, x, operand)
        levels = encoded.spec.format.decode(encoded.codes)
        return fake, encoded.dequantize(), encoded.spec.format.encode(levels) == encoded.codes

    return run


@settings(max_examples=24, deadline=None)
@given(st.sampled_from(cases()), st.sampled_from(SHAPES), st.data())
def test_any_values(case, shape, data):
    """Of any shape and any finite values: what is decoded is what was trained, finite, and its codes are exact."""
    size = shape[0] * shape[1]
    values = np.asarray(data.draw(st.lists(FINITE, min_size=size, max_size=size)), np.float32)
    values = np.abs(values) if case.quantizer.spec.symmetric and case.quantizer.spec.format.low >= 0 else values
    x = jnp.asarray(values.reshape(shape if case.operand.is_weight else shape[::-1]))
    fake, decoded, exact = _round_trip(case, shape)(x)
    same(decoded, fake)
    assert np.isfinite(fake).all()
    assert np.asarray(exact).all()
