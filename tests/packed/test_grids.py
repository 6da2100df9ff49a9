"""What a scale rule is worth: the laws of normal numbers, brute force over every scale that a storage holds, formats of levels."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowbit.core.ranges import Full
from lowbit.core.searching import FourOverSix, Searched
from lowbit.formats.lookup import format_named, spec_from_text
from lowbit.packed.arrays import quantize_array
from lowbit.quantizers.rtn import RTN
from tests.values import heavy_tailed

NORMAL = jax.random.normal(jax.random.key(0), (32, 2048))


def quantized(text, rule, x=NORMAL):
    return quantize_array(x, RTN(spec_from_text(text, is_weight=True), rule), packed=False)


@pytest.mark.parametrize(
    ("text", "rule", "law", "slack"),
    [
        ("int4/g32/signed", Searched(), 0.00660, 0.002),
        (
            "int4/g32/int4",
            Searched(outer=(1.0, 0.9, 0.8)),
            0.00769,
            0.015,
        ),  # depends on the groups of a channel, here 64
        ("int4/g32/int5", Searched(), 0.00699, 0.015),
        ("nvfp4", Full(), 0.00903, 0.002),
        ("nvfp4", FourOverSix(), 0.00756, 0.004),
        ("nvfp4", Searched(), 0.00659, 0.004),
        ("nf4/g64/signed", Searched(), 0.00689, 0.004),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Full | Searched) else str(v),
)
def test_errors_of_normal_numbers(text, rule, law, slack):
    """Within four standard errors of the mean over rows, and a slack for what the law was rounded to."""
    off = np.asarray(quantized(text, rule).dequantize(), np.float64) - np.asarray(NORMAL, np.float64)
    per_row = (off**2).mean(1)
    error = 4.0 * per_row.std() / np.sqrt(len(per_row))
    assert abs(per_row.mean() - law) < error + slack * law
    assert error < 0.035 * law  # the test can tell the laws apart


def test_a_search_finds_the_best_of_all_126_scales():
    x = heavy_tailed(3, 8, 64)
    q = quantized("nvfp4", Searched(), x)
    outer = np.asarray(q.scale.scale, np.float64).item()
    assert outer == pytest.approx(float(jnp.abs(x).max()) / 6.0 / 448.0, rel=1e-6)
    scales = np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64) * outer
    levels = np.unique(np.arange(16, dtype=np.uint8).astype(np.uint8).view(np.uint8))
    values = np.asarray(format_named("fp4_e2m1").decode(jnp.asarray(levels)), np.float64)
    blocks = np.asarray(x, np.float64).reshape(-1, 16)
    near = np.abs(blocks[:, None, :, None] / scales[None, :, None, None] - values).argmin(-1)
    losses = ((values[near] * scales[None, :, None] - blocks[:, None]) ** 2).sum(-1)
    found = ((np.asarray(q.dequantize(), np.float64).reshape(-1, 16) - blocks) ** 2).sum(-1)
    assert (found >= losses.min(1) * (1 - 1e-5)).all()
    assert found.sum() <= losses.min(1).sum() * 1.005
    assert (found <= losses.min(1) * (1 + 1e-5)).mean() > 0.9


@pytest.mark.parametrize("text", ["int4/g16/int5", "mxfp4", "int4/g16/bfloat16/signed", "nvfp4"])
def test_searched_scales_are_stored_and_never_worse(text):
    x = heavy_tailed(4, 24, 96)
    errors = []
    for rule in (Full(), Searched(outer=(1.0, 0.9))):
        q = quantized(text, rule, x)
        again = q.encode()
        np.testing.assert_array_equal(again.dequantize(), q.dequantize())
        errors.append(float(jnp.sum(jnp.square(q.dequantize() - x))))
    assert errors[1] < errors[0] * 0.999


def test_additive_powers_of_two():
    """Eq. (5) of Li et al. with k = 2: sums of one of ``0, 2**-(i+1), 2**-(i+1+n), 2**-(i+1+2n)`` per term."""
    for bits, n in ((3, 1), (5, 2), (7, 3)):
        terms = [[0.0, *(2.0 ** -(i + 1 + j * n) for j in range(3))] for i in range(n)]
        sums = sorted({sum(parts) for parts in itertools.product(*terms)})
        levels = np.asarray(format_named(f"apot{bits}").levels)
        np.testing.assert_allclose(levels[levels >= 0] / levels.max(), np.asarray(sums) / max(sums), rtol=1e-12)
        np.testing.assert_array_equal(levels, -levels[::-1])
    got = quantized("apot4/g32", Searched(), heavy_tailed(5, 8, 64))
    assert got.spec.text == "apot4/g32/sym"
    assert set(np.unique(got.levels())) <= set(format_named("apot4").levels)
    with pytest.raises(ValueError, match="unknown format 'apot6'"):
        format_named("apot6")


def test_rules_say_what_they_do_not_take():
    with pytest.raises(ValueError, match="fp4_e2m1 with e4m3 scales"):
        quantized("int4/g16", FourOverSix())
    with pytest.raises(ValueError, match="symmetric grids"):
        quantized("int4/affine", Searched())
    with pytest.raises(ValueError, match="steps >= 2"):
        Searched(steps=1)
