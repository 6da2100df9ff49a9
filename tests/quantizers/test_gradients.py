"""The gradients of every method against its paper's equations, written out in float64 numpy, one formula a paper.

Steps are powers of two, so that ``x / s`` is exact and a tie or a bound is one in both arithmetics.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.quantizer import Quantizer
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

S = 0.25
"""The step of most cases."""

# In steps: levels, ties, half a step beyond both ends of 4 and of 2 bits, just inside and far out.
STEPS = np.array([
    -40.0, -9.0, -8.75, -8.5, -8.25, -8.0, -7.75, -7.5, -4.0, -2.5, -2.0, -1.5, -1.25, -1.0, -0.5, -0.125, 0.0, 0.125, 0.5,
    0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.25, 3.5, 3.75, 6.5, 7.0, 7.25, 7.5, 7.75, 14.75, 15.0, 15.5, 16.0, 40.0,
])  # fmt: skip


def rng():
    return np.random.default_rng(0)


def pulled(quantizer: Quantizer, learn, x, g, fixed=None, *, is_weight=True, train=False):
    """The gradients of ``sum(g * fake(x))``: to ``x``, and to every learned leaf; and the value."""
    operand = Operand(x.shape, contract=(x.ndim - 1,), is_weight=is_weight)

    @jax.jit
    def run(learn, x):
        state = {"learn": learn, "fixed": {k: jnp.asarray(v, jnp.float32) for k, v in (fixed or {}).items()}}
        if train:
            q = quantizer.train(state, x, operand, key=jax.random.key(1), step=jnp.int32(0))
        else:
            q = quantizer.quantize(state, x, operand)
        return q.dequantize()

    learn = {name: jnp.asarray(value, jnp.float32) for name, value in learn.items()}
    value, pull = jax.vjp(run, learn, jnp.asarray(x, jnp.float32))
    to_learn, to_x = pull(jnp.asarray(g, jnp.float32))
    return np.asarray(to_x), {name: np.asarray(v) for name, v in to_learn.items()}, np.asarray(value)


def close(got, want, terms=1.0):
    """Equal up to the rounding of a sum of ``terms`` products, each of a few roundings."""
    want = np.asarray(want, np.float64)
    bound = 16 * 2.0**-24 * np.maximum(np.abs(want), terms)
    assert (np.abs(np.asarray(got, np.float64) - want) <= bound).all(), (got, want)


def rows(scale=S):
    """Two rows, one the other's mirror image, so that a channel has its own sum."""
    return np.stack([STEPS, -STEPS]) * scale


@dataclasses.dataclass(frozen=True)
class Grid:
    """A signed or unsigned grid with a step and an integer zero point: what the papers' equations run over."""

    low: int
    high: int
    zero: int = 0

    @property
    def ends(self):
        return self.low - self.zero, self.high - self.zero


GRIDS = {
    ("w4", True): Grid(-8, 7),
    ("w4/tensor", True): Grid(-8, 7),
    ("w4/narrow", True): Grid(-7, 7),
    ("w4/affine", True): Grid(-8, 7, -3),
    ("wuint4", True): Grid(0, 15),
    ("a4", False): Grid(-8, 7, -3),
    ("a4/sym", False): Grid(-8, 7),
    ("auint4", False): Grid(0, 15, 0),
    ("a2", False): Grid(-2, 1, -1),
}


def summed(x, per_row):
    """A sum over what shares a step: a row, or everything."""
    return x.sum(1, keepdims=True) if per_row else x.sum(keepdims=True)


def case_of(factory, text, is_weight):
    grid = GRIDS[text, is_weight]
    quantizers = factory(text)
    q = quantizers.weight if is_weight else quantizers.input
    per_row = is_weight and "tensor" not in text
    shape = (2, 1) if per_row else (1, 1)
    fixed = {} if q.spec.symmetric else {"zero": np.full(shape, grid.zero, np.float32)}
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    return q, grid, per_row, shape, fixed, x, g


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
def test_lsq(text, is_weight):
    """Esser et al., 2020, Eqs. (3), (5), and g = 1 / sqrt(N Qp); of an affine grid Qp = 2**b - 1, of inputs N per example."""
    q, grid, per_row, shape, fixed, x, g = case_of(lsq, text, is_weight)
    to_x, to, _ = pulled(q, {"step": np.full(shape, S)}, x, g, fixed, is_weight=is_weight)
    low, high = grid.ends
    v = x / S
    inside = (v > low) & (v < high)
    ds = np.where(inside, np.round(v) - v, np.where(v <= low, low, high))
    count = STEPS.size if per_row or not is_weight else x.size
    top = grid.high if q.spec.symmetric else grid.high - grid.low
    close(to_x, g * inside)
    close(
        to["step"],
        summed(g * ds, per_row) / np.sqrt(count * top),
        summed(np.abs(g * ds), per_row) / np.sqrt(count * top),
    )


@pytest.mark.parametrize("group", [4, 7])
def test_lsq_of_groups(group):
    """A step a group: N is the group, also of the short last one's siblings."""
    q = lsq(f"w4/g{group}").weight
    x, g = rows()[:, :21], rng().normal(size=(2, 21))
    groups = -(-21 // group)
    steps = S * 2.0 ** rng().integers(-1, 2, (2, groups))
    to_x, to, _ = pulled(q, {"step": steps}, x, g)
    s = np.repeat(steps, group, 1)[:, :21]
    v = x / s
    inside = (v > -8) & (v < 7)
    ds = g * np.where(inside, np.round(v) - v, np.where(v <= -8, -8, 7))
    want = np.stack([ds[:, i : i + group].sum(1) for i in range(0, 21, group)], 1) / np.sqrt(group * 7)
    close(to_x, g * inside)
    close(to["step"], want, np.abs(ds).sum() / np.sqrt(group * 7))


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
@pytest.mark.parametrize("part", [0.0, 0.3])
def test_lsq_plus(text, is_weight, part):
    """Bhalgat et al., 2020, Eqs. (4), (5), at an offset of whole steps, and at ``part`` of a step more.

    With u = (x - beta) / s: dx^/ds = round(u) - u inside, n below, p above; dx^/dbeta = 0 inside, 1 outside. On the offset
    that is used, beta rounded to whole steps, all three are about the same u; beside it, what is outside gets the
    distance of beta from there, in steps.
    """
    q, grid, per_row, shape, _, x, g = case_of(lsq_plus, text, is_weight)
    whole = (grid.low - grid.zero) * S
    beta = whole + part * S
    learn = {"step": np.full(shape, S)} | ({} if q.spec.symmetric else {"offset": np.full(shape, beta)})
    to_x, to, _ = pulled(q, learn, x, g, is_weight=is_weight)
    low, high = grid.ends
    v = x / S
    inside = (v > low) & (v < high)
    rest = 0.0 if q.spec.symmetric else whole - beta
    n, p = (low, high) if q.spec.symmetric else (0, grid.high - grid.low)
    ds = np.where(inside, np.round(v) - v, np.where(v <= low, n, p) + rest / S)
    count = STEPS.size if per_row or not is_weight else x.size
    factor = 1 / np.sqrt(count * (grid.high if q.spec.symmetric else grid.high - grid.low))
    close(to_x, g * inside)
    close(to["step"], summed(g * ds, per_row) * factor, 16 * np.abs(g).sum() * factor)
    if not q.spec.symmetric:
        close(to["offset"], summed(g * ~inside, per_row) * factor, np.abs(g).sum() * factor)


@pytest.mark.parametrize(
    ("text", "grid", "steps"), [("w4", Grid(-8, 7), 8), ("w4/tensor", Grid(-8, 7), 8), ("wuint4", Grid(0, 15), 16)]
)
@pytest.mark.parametrize("beyond", [0.0, -0.5])
def test_tqt(text, grid, steps, beyond):
    """Jain et al., 2020, Eqs. (6) to (8): inside is n <= round(x / s) <= p; s = 2**ceil(log2 t) / 2**(b - 1)."""
    q = tqt(text).weight
    per_row, shape = "tensor" not in text, (1, 1) if "tensor" in text else (2, 1)
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    to_x, to, _ = pulled(q, {"log2_threshold": np.full(shape, np.log2(S * steps) + beyond)}, x, g)
    r = np.round(x / S)
    inside = (r >= grid.low) & (r <= grid.high)
    dt = S * np.log(2) * np.where(inside, r - x / S, np.where(r < grid.low, grid.low, grid.high))
    close(to_x, g * inside)
    close(to["log2_threshold"], summed(g * dt, per_row), np.abs(g * dt).sum())


def test_tqt_of_inputs():
    q = tqt("a4/sym").input
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    to_x, to, _ = pulled(q, {"log2_threshold": np.full((1, 1), 1.0)}, x, g, is_weight=False)
    r = np.round(x / S)
    inside = (r >= -8) & (r <= 7)
    close(to_x, g * inside)
    dt = S * np.log(2) * np.where(inside, r - x / S, np.where(r < -8, -8, 7))
    close(to["log2_threshold"], (g * dt).sum(), np.abs(g * dt).sum())


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_ewgs(text, is_weight, delta):
    """Lee et al., 2021, Eq. (7), on values over [0, 1]: g (1 + delta sign(g) (x_n - x_q)); the step gets LSQ's, so scaled."""
    q, grid, per_row, shape, fixed, x, g = case_of(lambda t: ewgs(t, delta=delta), text, is_weight)
    to_x, to, _ = pulled(q, {"step": np.full(shape, S)}, x, g, fixed, is_weight=is_weight)
    low, high = grid.ends
    v = np.clip(x / S, low, high)
    unit, level = (v - low) / (high - low), (np.round(v) - low) / (high - low)
    inside = (x / S > low) & (x / S < high)
    scaled = g * (1 + delta * np.sign(g) * (unit - level))
    close(to_x, scaled * inside)
    ds = g * np.round(v) - scaled * inside * v
    close(to["step"], summed(ds, per_row), 40 * np.abs(g).sum())


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
@pytest.mark.parametrize("factory", [rtn, stochastic])
def test_round_to_nearest(factory, text, is_weight):
    """Krishnamoorthi, 2018, Eq. (15): the gradient passes on [x_min, x_max], ends included; in training too."""
    q, grid, _, shape, fixed, x, g = case_of(factory, text, is_weight)
    low, high = grid.ends
    inside = (x / S >= low) & (x / S <= high)
    for train in (False, True):
        to_x, _, _ = pulled(q, {}, x, g, {"scale": np.full(shape, S), **fixed}, is_weight=is_weight, train=train)
        close(to_x, g * inside)


@pytest.mark.parametrize("text", ["w4", "w4/affine"])
def test_noise(text):
    """Defossez et al., 2022, section 3.2: w + step u has the derivative one, inside or not; served, Eq. (15)."""
    q, grid, _, shape, fixed, x, g = case_of(noise, text, True)
    fixed = {"scale": np.full(shape, S), **fixed}
    close(pulled(q, {}, x, g, fixed, train=True)[0], g)
    inside = (x / S >= grid.ends[0]) & (x / S <= grid.ends[1])
    close(pulled(q, {}, x, g, fixed)[0], g * inside)
    to_x, _, value = pulled(dataclasses.replace(q, rate=0.5), {}, x, g, fixed, train=True)
    untouched = value == x.astype(np.float32)
    close(to_x, g * (inside | untouched))


@pytest.mark.parametrize("text", ["a4", "auint4", "auint4/sym", "a4/sym"])
def test_pact(text):
    """Choi et al., 2018, section 3.1: dy/dalpha is 1 from x = alpha on, else 0; dy/dx is 1 in between.

    A signed grid clips at its lowest level, -8 / 7 alpha, and dy/dalpha is that.
    """
    q = pact(text).input
    two_sided = text == "a4/sym"
    alpha = S * (7 if two_sided else 15)
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    to_x, to, value = pulled(q, {"clip": np.full((1, 1), alpha)}, x, g, is_weight=False)
    bottom = -8 * S if two_sided else 0.0
    np.testing.assert_allclose(value, np.round(np.clip(x, bottom, alpha) / S) * S, atol=1e-6)
    close(to_x, g * ((x > bottom) & (x < alpha)))
    below = (x <= bottom) * (-8 / 7 if two_sided else 0.0)
    close(to["clip"], (g * ((x >= alpha) + below)).sum(), np.abs(g).sum())


@pytest.mark.parametrize("text", ["w1/channel", "w1/tensor", "wbinary/g8"])
def test_dorefa_of_one_bit(text):
    """Zhou et al., 2016, Eqs. (7), (8): E|r| sign(r), and the gradient as it came, to the largest weight as well."""
    q = dorefa(text).weight
    r, g = rng().normal(size=(3, 40)).astype(np.float32), rng().normal(size=(3, 40))
    to_x, _, value = pulled(q, {}, r, g)
    blocks = {"w1/channel": r.reshape(3, 1, 40), "w1/tensor": r.reshape(1, 1, 120), "wbinary/g8": r.reshape(3, 5, 8)}[
        text
    ]
    want = np.abs(blocks.astype(np.float64)).mean(-1, keepdims=True) * np.sign(blocks)
    np.testing.assert_allclose(value, want.reshape(3, 40), rtol=1e-6)
    close(to_x, g)


@pytest.mark.parametrize("text", ["w2/tensor", "w4/channel"])
def test_dorefa_of_more_bits(text):
    """Eq. (9) differentiated, quantize_k straight through: r_o = tanh(r) / m has dr_o/dr_i in m = max |tanh r| as well."""
    q = dorefa(text).weight
    r, g = rng().normal(size=(3, 40)).astype(np.float32).astype(np.float64), rng().normal(size=(3, 40))
    to_x, _, value = pulled(q, {}, r, g)
    t = np.tanh(r)
    axis = (0, 1) if "tensor" in text else 1
    m = np.abs(t).max(axis, keepdims=True)
    steps = 2**q.spec.format.bits - 1
    np.testing.assert_allclose(value, 2 * np.round((t / (2 * m) + 0.5) * steps) / steps - 1, atol=1e-6)
    of_m = -(g * t).sum(axis, keepdims=True) / m**2 * np.where(np.abs(t) == m, np.sign(t), 0.0)
    want = (g / m + of_m) * (1 - t**2)
    np.testing.assert_allclose(to_x, want, atol=40 * 16 * 2.0**-24 * np.abs(g).max() / m.min())


@pytest.mark.parametrize("text", ["a4", "auint4/sym"])
def test_dorefa_of_inputs(text):
    """Eq. (11): quantize_k of x clipped to [0, 1], straight through there, ends included."""
    x = np.stack([STEPS, -STEPS]) / 16
    x = np.where((x > 0) & (x < 1), x * 0.99, x)  # away from ties: float32 has no fifteenth
    g = rng().normal(size=x.shape)
    to_x, _, value = pulled(dorefa(text).input, {}, x, g, is_weight=False)
    np.testing.assert_allclose(value, np.round(np.clip(x, 0, 1) * 15) / 15, atol=1e-6)
    close(to_x, g * ((x >= 0) & (x <= 1)))


@pytest.mark.parametrize(("text", "is_weight"), [k for k in GRIDS if k[0] != "a2"], ids=str)
def test_fake_quant(text, is_weight):
    """TensorFlow: to x on the nudged range, ends included; to min what lies below it, to max what lies above."""
    q, grid, per_row, shape, _, x, g = case_of(fake_quant, text, is_weight)
    low, high = (end * S for end in grid.ends)
    if q.spec.symmetric and low < 0:
        low = -(2 ** (q.spec.format.bits - 1)) * S if "narrow" not in text else low
    learn = {"max": np.full(shape, high)} | ({} if q.spec.symmetric else {"min": np.full(shape, low)})
    to_x, to, _ = pulled(q, learn, x, g, is_weight=is_weight)
    under, over = x < low, x > high
    close(to_x, g * ~(under | over))
    of_max = over.astype(float)
    if q.spec.symmetric and grid.low < 0:
        of_max = of_max - under
    close(to["max"], summed(g * of_max, per_row), np.abs(g).sum())
    if not q.spec.symmetric:
        close(to["min"], summed(g * under, per_row), np.abs(g).sum())


def test_fake_quant_widens_where_tensorflow_shifts():
    """[2, 6] becomes [0, 6]: 15 steps of 0.4, zero exact, six representable."""
    q = fake_quant("auint4").input
    x = np.array([[-1.0, 0.0, 2.0, 6.0, 7.0]])
    to_x, to, value = pulled(
        q, {"min": np.full((1, 1), 2.0), "max": np.full((1, 1), 6.0)}, x, np.ones_like(x), is_weight=False
    )
    np.testing.assert_allclose(value, [[0.0, 0.0, 2.0, 6.0, 6.0]], atol=1e-6)
    np.testing.assert_array_equal(to_x, [[0, 1, 1, 1, 0]])
    assert (to["min"].item(), to["max"].item()) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("text", "parts", "top"), [("wternary", 1.5, 1), ("w2", 4.0, 3), ("wternary/tensor", 1.5, 1)])
def test_seq(text, parts, top):
    """Liu et al., 2025, section 3.2, clipped at 0.99 as the authors do; learned is alpha over its levels, so the gradient grows."""
    q = seq(text).weight
    per_row, shape = "tensor" not in text, (1, 1) if "tensor" in text else (2, 1)
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    to_x, to, value = pulled(q, {"step": np.full(shape, S)}, x, g)
    alpha, (k, shift) = parts * S, (3, 0.0) if top == 1 else (4, 0.5)
    w = x / alpha
    w_q = alpha * (np.round(np.clip(w, -0.99, 0.99) * k / 2 - shift) + shift) * 2 / k
    np.testing.assert_allclose(value, w_q, rtol=1e-6)
    to_alpha = g * (w_q / alpha - w * (inside := np.abs(w) < 1))
    count = STEPS.size if per_row else x.size
    close(to_x, g * inside)
    close(to["step"], parts * summed(to_alpha, per_row) / np.sqrt(count * top), np.abs(g).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_statsq(bits):
    """Liu, Liu, Cheng, 2023, Eq. (7), and their training code: s held, dW_q / dW = 1 everywhere, clipped or not."""
    w = rng().standard_t(3, size=(4, 33)).astype(np.float32)
    s, n = 2 * np.abs(w.astype(np.float64)).mean(1, keepdims=True), 2 ** (bits - 1)
    w_q = s * (np.round(np.clip(w / s, -1, 1 - 1e-6) * n - 0.5) + 0.5) / n
    to_x, _, value = pulled(statsq(f"w{bits}").weight, {}, w, 3 * w_q, {"scale": s / (2 * n)})
    np.testing.assert_allclose(value, w_q, rtol=1e-6)
    close(to_x, 3 * w_q)


@pytest.mark.parametrize("factory", [bitnet, twn, statsq], ids=lambda f: f.__name__)
def test_straight_through_everywhere(factory):
    """The papers' training section: as it came, inside and outside, and none through the scale."""
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    q = factory("w3" if factory is statsq else "wternary").weight
    operand = Operand(x.shape, contract=(1,))
    fixed = q.init(operand, {"values": jnp.asarray(x, jnp.float32)}, jax.random.key(0))["fixed"]
    for train in (False, True):
        close(pulled(q, {}, x, g, fixed, train=train)[0], g)


@pytest.mark.parametrize("text", ["wbinary", "wbinary/tensor", "wbinary/g8"])
def test_xnor(text):
    """Rastegari et al., 2016, section 3.1: g (1 / n + alpha [|W| < 1]); a weight of exactly 1 is outside, for any alpha."""
    q = xnor(text).weight
    w = rng().normal(size=(3, 40)).astype(np.float32)
    w[:, ::7] = np.sign(w[:, ::7])
    g = rng().normal(size=w.shape)
    cut = {"wbinary": w.reshape(3, 1, 40), "wbinary/tensor": w.reshape(1, 1, 120), "wbinary/g8": w.reshape(3, 5, 8)}[
        text
    ]
    alpha = np.abs(cut.astype(np.float64)).mean(-1, keepdims=True)
    shape = {"wbinary": (3, 1), "wbinary/tensor": (1, 1), "wbinary/g8": (3, 5)}[text]
    to_x, _, _ = pulled(q, {}, w, g, {"scale": alpha.reshape(shape)})
    slope = (1 / cut.shape[-1] + alpha * (np.abs(cut) < 1)).reshape(3, 40)
    close(to_x, g * slope, np.abs(g))
