"""One array: bits, errors, reference values of block formats and range rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core.blocks import reduce_blocks
from lowbit.core.clipping import Entropy, Octav, Percentile
from lowbit.core.metrics import nmse
from lowbit.core.ranges import MSE, Full, PowerOfTwo, ToLowest
from lowbit.packed.arrays import quantize_array
from lowbit.packed.bits import unpack
from lowbit.quantizers.rtn import rtn
from lowbit.report.formats import format_table

NORMAL = jax.random.normal(jax.random.key(0), (512, 4096))

# Expected normalised error on independent normals (8 million samples, standard error below 0.1 %, here 2 million).
TABLE = [
    ("int4n/g16", Full(), 0.007256),
    ("int4n/g32", Full(), 0.009412),
    ("int4n/g64", Full(), 0.011585),
    ("int4n/g128", Full(), 0.013781),
    ("int4n/g256", Full(), 0.015901),
    ("int4/g32", ToLowest(), 0.008766),
    ("int4/g64", ToLowest(), 0.009854),
    ("int4/g128", ToLowest(), 0.011157),
    ("int4/affine/g32", Full(), 0.006524),
    ("int4/affine/g64", Full(), 0.008286),
    ("int4/affine/g128", Full(), 0.010087),
    ("int4n/g32", MSE(), 0.008291),
    ("int4n/g64", MSE(), 0.009893),
    ("int4n/g128", MSE(), 0.011184),
    ("int4n/g1024", MSE(), 0.012663),
    ("nf4/g32", Full(), 0.007620),
    ("nf4/g64", Full(), 0.008458),
    ("nf4/g128", Full(), 0.009143),
    ("fp4_e2m1/g32", Full(), 0.010222),
    ("fp4_e2m1/g64", Full(), 0.011172),
    ("fp4_e2m1/g128", Full(), 0.011848),
    ("mxfp4", PowerOfTwo("floor"), 0.013220),
    ("mxfp4", PowerOfTwo("ceil"), 0.013321),
    ("mxfp4", PowerOfTwo("even"), 0.012503),
    ("nvfp4", Full(), 0.009043),
    ("mxfp8_e4m3", PowerOfTwo("floor"), 0.000862),
    ("mxfp8_e4m3", PowerOfTwo("ceil"), 0.000704),
    ("mxfp8_e4m3", PowerOfTwo("even"), 0.000763),
    ("mxfp8_e5m2", Full(), 0.002917),
    ("mxfp8_e5m2", PowerOfTwo("ceil"), 0.002792),
    ("mxfp8_e5m2", PowerOfTwo("even"), 0.002787),
    ("mxint8", Full(), 6.8e-5),
    ("int8n/g32", Full(), 2.9e-5),
    ("int8n/g128", Full(), 4.2e-5),
    ("int8n/g4096", Full(), 7.5e-5),
]
PRINTED = {6.8e-5: 0.0075, 2.9e-5: 0.0175, 4.2e-5: 0.012, 7.5e-5: 0.007}
"""Half a unit of the last printed digit, relative, where that is more than the sampling error."""


@functools.cache
def _nmse(rule):
    """One program a quantizer: nothing but its errors leaves it."""
    return jax.jit(lambda x: nmse(x, quantize_array(x, rule, packed=False).dequantize()))


@pytest.mark.parametrize(("how", "rule", "expected"), TABLE, ids=lambda v: str(v))
def test_block_formats_on_normal_data(how, rule, expected):
    """Within 0.7 %: four standard errors of this sample, and what a finer search than the reference's gains (0.5 %)."""
    error = _nmse(rtn("w" + how, range=rule))(NORMAL)
    np.testing.assert_allclose(error, expected, rtol=0.007 + PRINTED.get(expected, 0.0))


@pytest.mark.parametrize(("group", "expected"), [(32, 0.006116), (64, 0.008028), (128, 0.009937)])
def test_unsigned_codes_above_a_float_minimum(group, expected):
    """GGUF's Q4_1: the block's minimum is subtracted first. Zero points here are integers, so that is two calls."""
    blocks = (1, group)
    low = reduce_blocks(NORMAL, blocks, lambda x, **how: jnp.min(x, **how))
    shift = jnp.repeat(low, group, axis=1)
    above = quantize_array(NORMAL - shift, f"uint4/g{group}")
    np.testing.assert_allclose(nmse(NORMAL, above.dequantize() + shift), expected, rtol=0.007)


@pytest.mark.parametrize(("group", "expected"), [(32, 0.007374), (64, 0.008998), (128, 0.010615)])
def test_codes_that_follow_the_sign_of_the_largest(group, expected):
    """GGUF's Q4_0: the value of largest magnitude gets the level -8. Scales here are positive, so its sign is moved first."""
    cut = NORMAL.reshape(-1, group)
    largest = jnp.take_along_axis(cut, jnp.argmax(jnp.abs(cut), axis=1, keepdims=True), axis=1)
    turned = cut * -jnp.sign(largest)
    q = quantize_array(turned, rtn(f"w4/g{group}", range=ToLowest()))
    np.testing.assert_allclose(nmse(turned, q.dequantize()), expected, rtol=0.007)


QUANTILES = jax.scipy.special.ndtri((jnp.arange(2.0**20) + 0.5) / 2**20)[None]


@pytest.mark.parametrize(
    ("bits", "clip"), [(2, 1.73884), (3, 2.16112), (4, 2.56209), (5, 2.93707), (6, 3.28716), (7, 3.61518), (8, 3.92405)]
)
def test_octav_fixed_points(bits, clip):
    """The printed fixed points on N(0, 1), up to what a million quantiles say about the tail beyond the clip."""
    scale = quantize_array(QUANTILES, rtn(f"w{bits}/tensor", range=Octav())).scale
    np.testing.assert_allclose(scale.reshape(()) * (2 ** (bits - 1) - 1), clip, rtol=2e-5 if bits < 6 else 5e-4)


@pytest.mark.parametrize(
    ("bits", "step", "error"), [(2, 1.04839, 0.149431), (4, 0.33861, 0.0118640), (8, 0.03077, 8.77069e-5)]
)
def test_least_squares_range(bits, step, error):
    """The search finds the optimum's error; its step is flat around it, so it is known less well."""
    q = quantize_array(QUANTILES, rtn(f"w{bits}/tensor", range=MSE()))
    np.testing.assert_allclose(q.scale.reshape(()), step, rtol=2e-3)
    np.testing.assert_allclose(nmse(QUANTILES, q.dequantize()), error, rtol=5e-3)


def test_percentile_and_entropy():
    x = jnp.concatenate([QUANTILES[0, ::64], jnp.array([50.0])])[None]
    full = float(quantize_array(x, rtn("w8/tensor")).scale.reshape(())) * 127
    percentile = float(quantize_array(x, rtn("w8/tensor", range=Percentile(99.9))).scale.reshape(())) * 127
    assert full == pytest.approx(50.0)
    assert percentile == pytest.approx(np.percentile(np.abs(np.asarray(x)), 99.9), rel=1e-4)
    entropy = float(quantize_array(QUANTILES, rtn("w4/tensor", range=Entropy())).scale.reshape(())) * 7
    assert 2.0 < entropy < 4.5  # clips: the range is 4.9
    for bad, says in (
        (lambda: Percentile(-1.0), r"\(50, 100\], got -1"),
        (lambda: Octav(0), "at least 1"),
        (lambda: Entropy(8), "bins >= 256"),
    ):
        with pytest.raises(ValueError, match=says):
            bad()
    with pytest.raises(ValueError, match="integer format"):
        rtn("wnf4", range=Octav())
    with pytest.raises(ValueError, match="e8m0"):
        rtn("w4", range=PowerOfTwo())


@pytest.mark.parametrize(
    ("how", "bits"),
    [
        ("int4/g32", 5.0),
        ("int4/g32/bfloat16", 4.5),
        ("nf4/g64", 4.5),
        ("nf4/g64/dq", 4.127),
        ("mxfp4", 4.25),
        ("mxfp6_e2m3", 6.25),
        ("nvfp4", 4.5),
        ("int3/g128", 3.25),
        ("ternary/tensor", 2.0),
        ("binary/tensor", 1.0),
        ("int8/affine/g128", 8.3125),
    ],
)
def test_bits_are_real(how, bits):
    """Stored bits per element, scales included, once packed; and packing loses nothing."""
    x = NORMAL[:256, :2048]
    packed = lb.quantize_array(x, how)
    assert abs(packed.bits_per_element - bits) < 0.002
    assert packed.nbytes * 8 == packed.bits_per_element * x.size
    codes = lb.quantize_array(x, how, packed=False)
    np.testing.assert_array_equal(packed.unpacked_codes(), codes.codes)
    np.testing.assert_array_equal(packed.dequantize(), codes.dequantize())
    np.testing.assert_array_equal(unpack(packed).dequantize(), codes.dequantize())


def test_neighbours_differ():
    """Group sizes and axes give different values: the data can fail the tests above."""
    x = NORMAL[:64, :64]
    errors = [
        float(nmse(x, quantize_array(x, h, axis=a).dequantize())) for h in ("int4/g16", "int4/g32") for a in (0, 1)
    ]
    assert len(set(errors)) == 4


def test_transformations():
    x = NORMAL[:4, :96].reshape(2, 2, 96)
    mapped = jax.vmap(lambda x: quantize_array(x, "int4/g32"))(x)
    np.testing.assert_array_equal(mapped.dequantize(), quantize_array(x, "int4/g32").dequantize())
    jitted = jax.jit(lambda x: quantize_array(x, "nvfp4").dequantize())(x[0])
    np.testing.assert_array_equal(jitted, quantize_array(x[0], "nvfp4").dequantize())
    for dtype in (jnp.bfloat16, jnp.float16):
        assert quantize_array(x.astype(dtype), "int4").dequantize().dtype == dtype


def test_bad_input():
    x = NORMAL[:4, :4]
    for bad, error, says in [
        (lambda: quantize_array(jnp.ones(4, jnp.int32), "int4"), TypeError, "i32"),
        (lambda: quantize_array(x, "int4", axis=2), ValueError, "axis 2"),
        (lambda: quantize_array(x, "int4/g"), ValueError, "unknown option"),
        (lambda: quantize_array(x, rtn("a8")), ValueError, "no weight part"),
    ]:
        with pytest.raises(error, match=says):
            bad()


def test_format_table():
    rows = {row["format"]: row for row in format_table(["int4", "nf4", "mxfp4", "binary"], samples=2**17)}
    assert rows["mxfp4"]["bits"] == 4.25
    assert rows["int4"]["levels"] == 16
    assert rows["binary"]["best_normal_db"] == 4.4
    assert rows["nf4"]["normal_db"] > rows["int4"]["normal_db"]
