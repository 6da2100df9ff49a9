"""Blocks of zeros, of subnormal, tiny, huge and equal values, and one outlier: every format, every kind of scale.

What holds is derived: a scale that exists and is normal; a decoded value that is the trained one and finite; zero where the
format has one; and an error of at most half the widest gap between levels, times the scale, where nothing saturates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.clipping import Entropy, Octav, Percentile
from lowbit.core.ranges import MSE, Full
from lowbit.core.spec import Operand
from lowbit.formats.lookup import format_words, spec_from_text
from lowbit.formats.optimum import levels_of
from lowbit.quantizers.lsq import LSQ
from lowbit.quantizers.rtn import RTN
from tests.contract.cases import cases

MOST = float(np.finfo(np.float32).max)
BLOCK = 8
RAMP = np.linspace(-1.0, 1.0, BLOCK)
ROWS = {
    "zeros": np.zeros(BLOCK),
    "subnormal": np.full(BLOCK, 1e-40),
    "least normal": RAMP * 2.0**-126,
    "1e-38": RAMP * 1e-38,
    "1e-30": RAMP * 1e-30,
    "1e38": RAMP * 1e38,
    "most": RAMP * MOST,
    "all most": np.full(BLOCK, MOST),
    "all least": np.full(BLOCK, -MOST),
    "equal": np.full(BLOCK, 0.3),
    "equal below": np.full(BLOCK, -0.3),
    "outlier": np.concatenate([[1e30], RAMP[1:]]),
    "one": np.concatenate([[1.0], np.zeros(BLOCK - 1)]),
    "above": np.linspace(1.0, 2.0, BLOCK),
}
X = np.stack(list(ROWS.values())).astype(np.float32)
OPTIONS = (
    "",
    "/affine",
    f"/g{BLOCK}/bfloat16",
    f"/g{BLOCK}/float16",
    f"/g{BLOCK}/e8m0",
    f"/g{BLOCK}/e4m3",
    f"/g{BLOCK}/dq",
)


def specs(option):
    """Of every format that takes the option; every other one of the many."""
    found = []
    for word in format_words():
        try:
            found.append(spec_from_text(word + option, is_weight=True))
        except ValueError:
            continue
    return found[:: 2 if len(found) > 12 else 1]


@functools.cache
def widest_gap(numbers):
    """Half the widest gap between levels, or how far an end is from the end of the range that is scaled to reach."""
    levels = levels_of(numbers)
    return max(np.diff(levels).max() / 2, 0.5 if not numbers.is_integer else 0.0)


def on_grid(spec):
    """Every row by itself: scales of scales see one block."""
    operand = Operand((1, BLOCK), contract=(1,))
    quantizer = RTN(spec)

    def run(row):
        state = quantizer.init(operand, {"values": row}, jax.random.key(0))
        q = quantizer.quantize(state, row, operand)
        return q.dequantize(), q.encode().dequantize(), q.scale_values

    return [np.asarray(part) for part in jax.vmap(run)(jnp.asarray(X)[:, None])]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o[1:] or "float32")
def test_every_format_and_scale(option):
    assert specs(option)
    for spec in specs(option):
        value, decoded, scale = on_grid(spec)
        scale = scale.reshape(len(X), -1)
        np.testing.assert_array_equal(value, decoded, err_msg=spec.text)
        assert np.isfinite(value).all(), spec.text
        assert np.isfinite(scale).all(), spec.text
        assert (np.abs(scale) >= 2.0**-126).all(), spec.text
        value, smallest = value[:, 0].astype(np.float64), scale.min(1, keepdims=True).astype(np.float64)
        is_zero = X == 0
        if spec.format.has_zero:
            assert (value[is_zero] == 0).all(), spec.text
        else:
            assert (np.abs(value[0]) <= spec.format.high * smallest[0]).all(), spec.text
            least = (
                2.0**-24 * spec.format.high if spec.scale.name == "float16" else 1e-30
            )  # float16 has no smaller number
            assert (np.abs(value[0]) <= least).all(), spec.text
        if spec.scale.name != "float32":
            continue  # their rounding shrinks ranges: what saturates is another law
        low, high = spec.format.low * smallest, spec.format.high * smallest
        if not spec.symmetric:
            low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
        inside = (X >= low * (1 - 1e-6)) & (X <= high * (1 + 1e-6))
        gap = np.abs(value - X.astype(np.float64)) - widest_gap(spec.format) * smallest * (1 + 1e-5)
        slack = 4 * 2.0**-24 * np.abs(X) + 2.0**-126  # two roundings of the value, and what is flushed
        holds = (gap <= slack) | ~inside
        reaches = np.abs(X).max(1) <= 2.0**126 * min(spec.format.high, 2.0)
        assert holds[reaches].all(), (spec.text, list(np.array(list(ROWS))[reaches & ~holds.all(1)]))


@pytest.mark.parametrize(
    "rule", [MSE(steps=8, refine=0), Percentile(99.0), Octav(4), Entropy(256, 4)], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("text", ["int4", "uint4", "int4/affine"])
def test_every_range_rule(rule, text):
    """Scales exist and are normal: sums of magnitudes near the largest float do not overflow into them."""
    spec = spec_from_text(text, is_weight=True)
    x = np.abs(X) if text == "uint4" else X
    scale, zero = jax.jit(lambda x: rule.of_values(x, Operand(x.shape, contract=(1,)), spec))(x)
    assert np.isfinite(scale).all()
    assert (np.asarray(scale) >= 2.0**-126).all()
    assert zero is None or np.isfinite(zero).all()


@pytest.mark.parametrize("rule", [Full(), MSE(), Percentile(99.0), Octav(), Entropy()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_a_block_without_values_is_one_of_zeros(rule, shape):
    """A batch of no examples, its rows contracted or not: as many scales as there are blocks, that of zeros each."""
    spec = spec_from_text("int4", is_weight=True)
    scale, _ = rule.of_values(jnp.zeros(shape), Operand(shape, contract=(1,)), spec)
    of_zeros, _ = rule.of_values(jnp.zeros((3, 4)), Operand((3, 4), contract=(1,)), spec)
    assert scale.shape == (max(shape[0], 1), 1)
    np.testing.assert_array_equal(scale, of_zeros[: scale.shape[0]])


@pytest.mark.parametrize("start", ["paper", "mse"])
def test_learned_steps_start_finite(start):
    q = LSQ(spec_from_text("int4", is_weight=True), start)
    step = jax.jit(lambda x: q.init(Operand(x.shape, contract=(1,)), {"values": x}, jax.random.key(0)))(X)["learn"][
        "step"
    ]
    assert np.isfinite(step).all()
    assert (np.asarray(step) > 0).all()


def test_zeros_have_no_sign_without_a_zero():
    """A layer of zeros in a format without zero is next to nothing, not plus and minus one: E|w| is zero."""
    names = set()
    for case in cases():
        if case.operand.is_weight and not case.quantizer.spec.format.has_zero:
            x = jnp.zeros(case.operand.shape)
            state = case.state(x)
            if jax.tree.leaves(state):  # a fixed range (DoReFa's tanh) has its levels whatever the weights
                names.add(case.label)
                assert float(jnp.abs(case.quantizer.fake(state, x, case.operand)).max()) < 1e-30, case.label
    assert names
