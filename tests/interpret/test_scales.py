"""Signed scales and integer scales of groups, from a rule text to every route that serves them.

The right values are written out in numpy: integers of the packed codes and scales, summed in int64, then one product with the
float32 of the channel and one with the input's scale, each rounded once.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.core.qtensor import QTensor
from lowbit.packed import native
from tests.values import heavy_tailed

X = heavy_tailed(0, 5, 70)
PARAMS = {"w": heavy_tailed(1, 70, 24), "v": heavy_tailed(2, 24, 9)}
INTEGERS = ("w4/g32/int5", "w5/g16/int4", "w4n/g16/uint4")
SIGNED = ("w2/g8/bfloat16/signed",)


def dense(p, x):
    return jnp.maximum(x @ p["w"], 0.0) @ p["v"]


def packed(text, fn=dense, params=PARAMS, x=X, **options):
    plan = lb.bind(fn, {"**": text}, params, x, **options)
    qstate = lb.calibrate(fn, plan, params, [(x,)])
    return plan, qstate, lb.pack(plan, params, qstate)


@pytest.mark.parametrize("text", [*INTEGERS, *SIGNED])
def test_every_route_gives_the_same_bits(text):
    plan, qstate, qparams = packed(f"{text},a8")
    want = np.asarray(lb.simulate(dense, plan)(PARAMS, qstate, X))
    for implementation in (None, "carried", "reference"):
        np.testing.assert_array_equal(lb.execute(dense, plan, implementation=implementation)(qparams, X), want)
    if native.status() is None:
        assert lb.explain(dense, plan, qparams, X).count("cpu") == 2
    q = qparams.params["w"]
    if q.spec.has_signed_scales:
        assert (np.asarray(q.scale_values) < 0).any()
        assert (np.asarray(q.scale_values) > 0).any()


@pytest.mark.parametrize("text", INTEGERS[:2])
def test_sums_are_integers_over_all_groups(text):
    fn, params = (lambda p, x: x @ p["w"]), {"w": PARAMS["w"]}
    plan, _, qparams = packed(f"{text},a8/sym", fn, params)
    q = qparams.params["w"]
    size = q.spec.granularity.size
    factors = np.asarray(q.scale.unpacked_codes(), np.int64)
    levels = np.asarray(q.unpacked_codes(), np.int64) * np.repeat(factors, size, 0)[:70]
    assert np.abs(levels).max() <= 127
    assert (factors != 0).all()
    own = np.asarray(q.scale.scale)
    assert own.shape == (1, 24)
    np.testing.assert_array_equal(q.dequantize(), levels.astype(np.float32) * own)
    state = qparams.sites["w"]["input"]
    s = np.float32(state["scale"].reshape(()))
    codes = np.clip(np.round(np.asarray(X) * (np.float32(1.0) / s)), -128, 127).astype(np.int64)
    want = ((codes @ levels).astype(np.float32) * own) * s
    np.testing.assert_array_equal(lb.execute(fn, plan)(qparams, X), want)
    assert q.bits_per_element < q.spec.format.bits + 1 + 32 / 70 + q.spec.scale.bits / size * 1.5


def test_the_largest_entry_takes_the_lowest_level():
    w = np.asarray(PARAMS["w"])
    _, _, qparams = packed("w4/g32/signed")
    q = qparams.params["w"]
    for group, start in enumerate(range(0, 70, 32)):
        block = w[start : start + 32]
        entry = block[np.abs(block).argmax(0), np.arange(24)]
        np.testing.assert_allclose(q.scale[group], entry / -8.0, rtol=1e-6)
        at = np.asarray(q.unpacked_codes())[start : start + 32][np.abs(block).argmax(0), np.arange(24)]
        assert (at == -8).all()


@pytest.mark.parametrize("text", ["w4/g32/int5,a8", "w4/g32/signed,a8"])
def test_full_integer_plans(text):
    plan, qstate, qparams = packed(text, integer=True)
    want = np.asarray(lb.simulate(dense, plan)(PARAMS, qstate, X))
    for implementation in ("carried", "reference"):
        np.testing.assert_array_equal(lb.execute(dense, plan, implementation=implementation)(qparams, X), want)
    near = np.asarray(dense({k: q.dequantize() for k, q in qparams.params.items()}, X))
    assert np.corrcoef(near.ravel(), want.ravel())[0, 1] > 0.995
    if "int5" in text:
        assert "groups" not in qparams.sites["w"], (
            "a group's integer is in the codes: one multiplier per channel is left"
        )


def test_convolutions_and_lookups():
    kernel, table = heavy_tailed(3, 3, 3, 12, 8), heavy_tailed(4, 40, 16)
    x, ids = heavy_tailed(5, 2, 6, 6, 12), jnp.asarray([3, 39, 0])

    def fn(p, x, ids):
        return convolved(x, p["k"]).mean((1, 2)), p["t"][ids]

    params = {"k": kernel, "t": table}
    for text in ("w4/g4/int5,a8", "w4/signed,a8"):
        plan = lb.bind(fn, {"**": text}, params, x, ids)
        qstate = lb.calibrate(fn, plan, params, [(x, ids)])
        qparams = lb.pack(plan, params, qstate)
        want = lb.simulate(fn, plan)(params, qstate, x, ids)
        got = lb.execute(fn, plan)(qparams, x, ids)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
        assert isinstance(qparams.params["t"], QTensor)
        np.testing.assert_array_equal(want[1], qparams.params["t"].dequantize()[ids])


def convolved(x, k):
    return lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("text", ["w4/g32/int5,a8", "wnf4/g32/signed"])
def test_files(text, tmp_path):
    plan, _, qparams = packed(text)
    want = lb.execute(dense, plan)(qparams, X)
    lb.save(tmp_path / "m.lowbit", plan, qparams)
    again, read = lb.load(tmp_path / "m.lowbit")
    assert read.params["w"].spec == qparams.params["w"].spec
    np.testing.assert_array_equal(lb.execute(dense, again)(read, X), want)


def test_moved_weights():
    def fn(p, x):
        return x @ p["w"].T.reshape(24, 7, 10)[:, ::-1].reshape(24, 70).T

    plan, qstate, qparams = packed("w4/g32/int5,a8", fn, {"w": PARAMS["w"]})
    want = lb.simulate(fn, plan)({"w": PARAMS["w"]}, qstate, X)
    assert isinstance(qparams.params["w"], QTensor)
    np.testing.assert_array_equal(lb.execute(fn, plan)(qparams, X), want)
