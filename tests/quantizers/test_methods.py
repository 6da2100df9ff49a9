"""Every method: a value worked by hand from its paper, the paper's claim as an inequality, bad inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.metrics import mean_squared_error, nmse
from lowbit.core.ranges import MSE
from lowbit.core.spec import Operand
from lowbit.quantizers.bitnet import bitnet
from lowbit.quantizers.dorefa import dorefa
from lowbit.quantizers.ewgs import ewgs
from lowbit.quantizers.fake_quant import fake_quant
from lowbit.quantizers.lsq import lsq
from lowbit.quantizers.lsq_plus import lsq_plus
from lowbit.quantizers.noise import noise
from lowbit.quantizers.pact import pact
from lowbit.quantizers.rtn import rtn
from lowbit.quantizers.seq import seq
from lowbit.quantizers.statsq import statsq
from lowbit.quantizers.stochastic import stochastic
from lowbit.quantizers.tqt import tqt
from lowbit.quantizers.twn import twn
from lowbit.quantizers.xnor import xnor

KEY = jax.random.key(0)


def row(values):
    """One row of inputs or weights, contracted along the last axis."""
    return jnp.asarray([values], jnp.float32)


def operand_of(x, *, is_weight=True):
    return Operand(tuple(x.shape), contract=(x.ndim - 1,), is_weight=is_weight)


def gradients(quantizer, learn, x, fixed=None, *, is_weight=True):
    """fake, its gradient to every value (of the sum), and to every learned leaf by value."""
    operand = operand_of(x, is_weight=is_weight)

    def fake(learn, x):
        return quantizer.fake({"learn": learn, "fixed": fixed or {}}, x, operand)

    by_leaf = jax.jacrev(fake)(learn, x) if learn else {}
    to_x = jax.grad(lambda x: fake(learn, x).sum())(x)
    return fake(learn, x)[0], to_x[0], {k: v.reshape(x.shape[1], -1)[:, 0] for k, v in by_leaf.items()}


V = row([-1.0, 0.2, 0.5, 0.9, 1.4, 2.2, 2.6, 3.7])


def test_lsq_golden():
    """s = 1, Qn = 0, Qp = 3 (Esser et al., 2020, Eqs. 1 to 3); the gradient scale 1 / sqrt(N Qp) divided out."""
    q = lsq("wuint2/tensor").weight
    value, to_v, to = gradients(q, {"step": jnp.ones((1, 1))}, V)
    np.testing.assert_array_equal(value, [0, 0, 0, 1, 1, 2, 3, 3])
    np.testing.assert_array_equal(to_v, [0, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(to["step"] * np.sqrt(8 * 3), [0, -0.2, -0.5, 0.1, -0.4, -0.2, 0.4, 3], atol=1e-6)


def test_lsq_starts():
    """The paper's start at 8 bits is 12.8 dB worse than least squares on normal weights; below 4 bits it is the default."""
    x = jax.scipy.special.ndtri((jnp.arange(2.0**17) + 0.5) / 2**17)[None]
    operand = operand_of(x)
    error = {}
    for start in ("paper", "mse"):
        q = lsq("w8/tensor", start=start).weight
        state = q.init(operand, {"values": x}, KEY)
        error[start] = float(nmse(x, q.fake(state, x, operand)))
    assert abs(10 * np.log10(error["paper"] / error["mse"]) - 12.8) < 0.2
    step = lsq("w2/tensor").weight.init(operand, {"values": x}, KEY)["learn"]["step"]
    np.testing.assert_allclose(step, 1.5958, rtol=0.02)
    with pytest.raises(ValueError, match="'paper', got 'best'"):
        lsq("w4", start="best")


def test_lsq_plus_golden():
    """Eqs. (4), (5): d/d beta is 1 outside and 0 inside; d/ds is n and p outside, level - x / s inside."""
    q = lsq_plus("auint2").input
    x = row([-3.0, -0.7, 0.4, 9.0])
    value, to_x, to = gradients(q, {"step": jnp.ones((1, 1)), "offset": jnp.full((1, 1), -1.0)}, x, is_weight=False)
    np.testing.assert_array_equal(value, [-1, -1, 0, 2])  # beta = -1: levels -1, 0, 1, 2
    np.testing.assert_array_equal(to_x, [0, 1, 1, 0])
    g = np.sqrt(4 * 3)
    np.testing.assert_allclose(to["offset"] * g, [1, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(to["step"] * g, [0, -0.3, -0.4, 3], atol=1e-6)


def test_lsq_plus_beats_lsq_on_swish():
    """The claim: with negative values that matter, a learned offset starts (and stays) better than an unsigned grid."""
    x = jax.nn.swish(jax.random.normal(KEY, (1, 16384)))
    operand = operand_of(x, is_weight=False)
    q = lsq_plus("a4").input
    stats = {s.name: s.finish(s.update(s.init(operand), x, operand)) for s in q.needs(operand)}
    unsigned = rtn("auint4/sym", range=MSE()).input
    ours = q.fake(q.init(operand, stats, KEY), x, operand)
    theirs = unsigned.fake(unsigned.init(operand, stats, KEY), x, operand)
    assert float(mean_squared_error(x, ours)) < 0.8 * float(mean_squared_error(x, theirs))


def test_ewgs_golden():
    """Eq. (7) at delta 0.3 over [0, 1]: two bits have three steps, so 0.1 over levels."""
    q = ewgs("wuint2/tensor", delta=0.3).weight
    x = row([0.2, 0.6, 1.4])
    value, to_x, _ = gradients(q, {"step": jnp.ones((1, 1))}, x)
    np.testing.assert_array_equal(value, [0, 1, 1])
    np.testing.assert_allclose(to_x, [1.02, 0.96, 1.04], rtol=1e-5)
    plain = gradients(ewgs("wuint2/tensor", delta=0.0).weight, {"step": jnp.ones((1, 1))}, x)[1]
    np.testing.assert_array_equal(plain, [1, 1, 1])
    with pytest.raises(ValueError, match=r"delta must be in \[0, 10\], got -1"):
        ewgs("w4", delta=-1.0)


def test_pact_golden():
    """alpha = 3 at two bits: levels 0 1 2 3; alpha gets a gradient where x >= alpha only."""
    q = pact("a2").input
    value, to_x, to = gradients(q, {"clip": jnp.full((1, 1), 3.0)}, row([-1, 0.4, 1.6, 3.0, 5.0]), is_weight=False)
    np.testing.assert_array_equal(value, [0, 0, 2, 3, 3])
    np.testing.assert_array_equal(to["clip"], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(to_x, [0, 1, 1, 0, 0])
    with pytest.raises(ValueError, match=r"pact is for inputs, got 'w4,a4'"):
        pact("w4,a4")


def test_dorefa_golden():
    """Eq. (9): r = [-1, 0.1, 0.5, 1], tanh / max = [-1, .1309, .6068, 1], two bits: -1, 1/3, 1/3, 1."""
    x = row([-1.0, 0.1, 0.5, 1.0])
    value, to_x, _ = gradients(dorefa("w2/tensor").weight, {}, x)
    np.testing.assert_allclose(value, [-1, 1 / 3, 1 / 3, 1], rtol=1e-6)
    assert (np.asarray(to_x) > 0).all()
    value, to_x, _ = gradients(dorefa("a2").input, {}, row([-0.5, 0.2, 0.9, 1.5]), is_weight=False)
    np.testing.assert_allclose(value, [0, 1 / 3, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(to_x, [0, 1, 1, 0])
    binary = dorefa("wbinary/tensor").weight
    np.testing.assert_allclose(gradients(binary, {}, x)[0], np.array([-1, 1, 1, 1]) * 0.65, rtol=1e-6)
    with pytest.raises(ValueError, match="not negative"):
        dorefa("a4/sym")


def test_tqt_golden():
    """t = 3: 2**ceil(log2 3) = 4, four bits: s = 1/2; the gradient to log2 t is s ln 2 (level - x / s), level outside."""
    q = tqt("w4/tensor").weight
    x = row([0.6, -9.0, 9.0, 1.0])
    value, to_x, to = gradients(q, {"log2_threshold": jnp.log2(jnp.full((1, 1), 3.0))}, x)
    np.testing.assert_array_equal(value, [0.5, -4, 3.5, 1.0])
    np.testing.assert_array_equal(to_x, [1, 0, 0, 1])
    np.testing.assert_allclose(to["log2_threshold"], 0.5 * np.log(2) * np.array([-0.2, -8, 7, 0]), atol=1e-6)
    with pytest.raises(ValueError, match="write /sym"):
        tqt("w8,a8")


def test_fake_quant_golden():
    """TensorFlow's rule: x on the nudged range, min below it, max above. 8 bits of [-0.1, 0.2]."""
    low, high = -0.1001, 0.1999
    q = fake_quant("auint8").input
    scale = np.float32((high - low) / 255)
    zero = round(-low / scale)
    nudged = ((0 - zero) * scale, (255 - zero) * scale)
    x = row([nudged[0] - 1e-3, nudged[0], 0.031, nudged[1], nudged[1] + 1e-3])
    value, to_x, to = gradients(q, {"min": jnp.full((1, 1), low), "max": jnp.full((1, 1), high)}, x, is_weight=False)
    np.testing.assert_allclose(
        value, [nudged[0], nudged[0], round(0.031 / scale) * scale, nudged[1], nudged[1]], rtol=1e-5
    )
    np.testing.assert_array_equal(to_x, [0, 1, 1, 1, 0])
    np.testing.assert_allclose(to["min"], [1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(to["max"], [0, 0, 0, 0, 1], atol=1e-6)


def test_seq_golden():
    """[-alpha, alpha] in 3 or 4 parts, their middles; a gradient up to alpha; init at the largest magnitude."""
    x = row([-1.0, -0.3, 0.2, 0.9])
    q = seq("wternary/tensor").weight
    state = q.init(operand_of(x), {"values": x}, KEY)
    np.testing.assert_allclose(q.fake(state, x, operand_of(x))[0], np.array([-1, 0, 0, 1]) * 2 / 3, rtol=1e-6)
    q = seq("w2/tensor").weight
    state = q.init(operand_of(x), {"values": x}, KEY)
    np.testing.assert_allclose(q.fake(state, x, operand_of(x))[0], [-0.75, -0.25, 0.25, 0.75], rtol=1e-6)
    _, to_x, to = gradients(q, state["learn"], row([0.9, 1.1]))  # 0.9 is beyond the outer level, within alpha
    np.testing.assert_array_equal(to_x, [1, 0])
    np.testing.assert_allclose(to["step"] * np.sqrt(2 * 3), [3 - 0.9 * 4, 3], atol=1e-5)
    with pytest.raises(ValueError, match="wternary or w2"):
        seq("w4")


NORMAL = jax.random.normal(jax.random.key(7), (1, 2**18))
SAMPLING = 0.01
"""Standard error of a mean squared error of 2**18 normals: below sqrt(2 / 2**18) / 0.3; four of them."""


@pytest.mark.parametrize(
    ("quantizers", "error"),
    [(xnor("wbinary/tensor"), 0.363380), (twn("wternary/tensor"), 0.191625), (bitnet("wternary/tensor"), 0.263382)],
    ids=["xnor", "twn", "bitnet"],
)
def test_errors_on_normal_weights(quantizers, error):
    """The reference values for N(0, 1): XNOR is the best binary grid, TWN .03 dB and BitNet 1.41 dB above ternary's."""
    q, operand = quantizers.weight, operand_of(NORMAL)
    fake = q.fake(q.init(operand, {"values": NORMAL}, KEY), NORMAL, operand)
    np.testing.assert_allclose(mean_squared_error(NORMAL, fake), error, rtol=SAMPLING)


def test_ternary_golden():
    """TWN: Delta = .7 x .5, alpha = mean of those beyond; BitNet: gamma = .5 and rounding."""
    x = row([-1.2, 0.3, -0.1, 0.4])
    value = {}
    for name, q in (("twn", twn("wternary").weight), ("bitnet", bitnet("wternary").weight)):
        value[name] = q.fake(q.init(operand_of(x), {"values": x}, KEY), x, operand_of(x))[0]
    np.testing.assert_allclose(value["twn"], [-0.8, 0, 0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(value["bitnet"], [-0.5, 0.5, 0, 0.5], rtol=1e-6)
    for bad in (lambda: twn("w4"), lambda: bitnet("w2"), lambda: xnor("wternary"), lambda: twn("wternary", factor=2.0)):
        with pytest.raises(ValueError):
            bad()


def test_xnor_gradient():
    """Section 3.1: g (1 / n + alpha [|W| < 1])."""
    x = row([-2.0, 0.5, 0.5, 1.0])
    state = xnor("wbinary").weight.init(operand_of(x), {"values": x}, KEY)
    _, to_x, _ = gradients(xnor("wbinary").weight, {}, x, state["fixed"])
    np.testing.assert_allclose(to_x, [0.25, 1.25, 1.25, 0.25], rtol=1e-6)


def test_statsq():
    """alpha = 2 mean |w|; two bits: middles of [-alpha, alpha] in four parts; training follows the weights."""
    x = row([-1.0, 0.2, 0.4, 0.4])
    q = statsq("w2/tensor").weight
    state = q.init(operand_of(x), {"values": x}, KEY)
    np.testing.assert_allclose(q.fake(state, x, operand_of(x))[0], [-0.75, 0.25, 0.25, 0.25], rtol=1e-6)
    trained = q.train(state, 2 * x, operand_of(x), key=None, step=None).dequantize()
    np.testing.assert_allclose(trained[0], [-1.5, 0.5, 0.5, 0.5], rtol=1e-6)
    after = q.update(state, {"values": 2 * x})
    np.testing.assert_array_equal(q.fake(after, 2 * x, operand_of(x)), trained)


def test_noise_is_a_step_wide_and_ends():
    """Pseudo-noise: error uniform over one step, variance 1/12; from `until` on, rounding; rate quantizes a share."""
    x = jax.random.normal(KEY, (1, 65536))
    operand = operand_of(x)
    q = noise("w4/tensor", until=10).weight
    state = q.init(operand, {"values": x}, KEY)
    step = float(state["fixed"]["scale"].reshape(()))
    noisy = q.train(state, x, operand, key=KEY, step=jnp.int32(9)).dequantize()
    np.testing.assert_allclose(np.var(np.asarray(noisy - x)) / step**2, 1 / 12, rtol=0.02)
    after = q.train(state, x, operand, key=KEY, step=jnp.int32(10)).dequantize()
    np.testing.assert_array_equal(after, q.fake(state, x, operand))
    part = dataclasses.replace(q, rate=0.25).train(state, x, operand, key=KEY, step=jnp.int32(0)).dequantize()
    share = np.mean(np.asarray(part) == np.asarray(q.fake(state, x, operand)))
    assert abs(share - 0.25) < 0.01
    with pytest.raises(ValueError, match="needs key="):
        q.train(state, x, operand, key=None, step=None)
    for bad in (
        lambda: noise("w4", rate=0.0),
        lambda: noise("wnf4"),
        lambda: noise("w4", until=-1),
        lambda: noise("w4,a4"),
    ):
        with pytest.raises(ValueError):
            bad()


def test_stochastic_rounding_costs_three_decibels():
    """Mean squared error step**2 / 6 against step**2 / 12, no bias, within the levels."""
    x = jax.random.uniform(jax.random.key(8), (1, 65536), minval=-1.0, maxval=1.0)
    operand = operand_of(x)
    q = stochastic("w5/narrow/tensor").weight
    state = q.init(operand, {"values": x}, KEY)
    trained = q.train(state, x, operand, key=KEY, step=None).dequantize()
    ratio = mean_squared_error(x, trained) / mean_squared_error(x, q.fake(state, x, operand))
    np.testing.assert_allclose(10 * np.log10(ratio), 3.01, atol=0.1)
    step = float(state["fixed"]["scale"].reshape(()))
    assert abs(float(jnp.mean(trained - x))) < 5 * step / np.sqrt(6 * x.size)
    assert float(jnp.abs(trained).max()) <= 15 * step * (1 + 1e-6)
    for bad in (lambda: stochastic("wnf4"), lambda: stochastic("w4", width=2.0)):
        with pytest.raises(ValueError):
            bad()


def test_microxcaling_vectors():
    """E4M3 block with floor scales: half away gives 416 for 400 / 1, nearest even 384 (both from the reference)."""
    x = row([485, 475, 400, -485, -475, -450, 2.0**-6, -(2.0**-6)])
    for rounding, third in (("half_away", 416.0), ("nearest_even", 384.0)):
        q = rtn("wmxfp8_e4m3", rounding=rounding).weight
        value = q.fake(q.init(operand_of(x), {"values": x}, KEY), x, operand_of(x))[0]
        np.testing.assert_array_equal(value, [448, 448, third, -448, -448, -448, 2.0**-6, -(2.0**-6)])
    x = row([1.0234375, 1.0390625, 1.2578125, 1.9453125, 1.9921875, -1.9765625, 0.01171875, 0.00390625])
    q = rtn("wmxint8", rounding="half_away").weight
    value = q.fake(q.init(operand_of(x), {"values": x}, KEY), x, operand_of(x))[0]
    np.testing.assert_array_equal(value, [1.03125, 1.046875, 1.265625, 1.953125, 1.984375, -1.984375, 0.015625, 0.0])
    x = row([-1, -1.75, -1.99, 1.99])
    q = rtn("wmxint4").weight
    value = q.fake(q.init(operand_of(x), {"values": x}, KEY), x, operand_of(x))[0]
    np.testing.assert_array_equal(value, [-1, -1.75, -1.75, 1.75])
