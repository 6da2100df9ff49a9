"""Learned widths and levels: their gradients by the papers' equations, their cost, and what they become when hardened."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core.spec import Operand
from lowbit.learn.harden import widths
from lowbit.quantizers.deep_compression import deep_compression
from lowbit.quantizers.hgq import hgq
from tests.contract.cases import factories
from tests.quantizers import test_gradients
from tests.values import heavy_tailed, normal

X = np.stack([row := np.linspace(-10.3, 9.9, 57, dtype=np.float32), -row * 0.7])
G = np.random.default_rng(0).normal(size=X.shape)


def pulled(quantizer, learn, fixed):
    """The value of ``fake(X)``, and the gradients of ``sum(G * fake(X))`` by ``X`` and by what is learned."""
    operand = Operand(X.shape, contract=(1,))

    @jax.jit
    def run(learn, x):
        return quantizer.fake({"learn": learn, "fixed": fixed}, x, operand)

    value, pull = jax.vjp(run, learn, jnp.asarray(X))
    return (np.asarray(value, np.float64), *pull(jnp.asarray(G, jnp.float32)))


def close(got, want, terms):
    """Equal up to the rounding of a sum whose magnitudes add up to ``terms``."""
    assert (np.abs(np.asarray(got, np.float64) - want) <= 16 * 2.0**-24 * (np.abs(want) + terms)).all()


def test_hgq_gradients():
    """Algorithm 1: ``dx_q/dx = 1``, ``dx_q/df = ln 2 (x - x_q)``; f rounds to 2 and 1, i is 3: 6 and 5 bits."""
    whole, f = np.full((2, 1), 3.0), np.array([[2.3], [0.8]])
    value, to_learn, to_x = pulled(hgq("w6").weight, {"fraction": jnp.float32(f)}, {"whole": jnp.float32(whole)})
    step = 2.0 ** -np.round(f)
    wide = X.astype(np.float64)
    want = np.clip(np.round(wide / step) * step, -(2.0**whole), 2.0**whole - step)
    np.testing.assert_array_equal(value, want)
    close(to_x, G, 0.0)
    pull = np.log(2.0) * G * (wide - want)
    terms = np.log(2.0) * np.abs(G * wide).sum(1, keepdims=True)  # of ``x`` and ``x_q``, whose difference is summed
    close(to_learn["fraction"], pull.sum(1, keepdims=True), terms)


@pytest.mark.parametrize("word", ["a6/sym", "auint6/sym"])
def test_hgq_of_inputs(word, tmp_path):
    """Fixed point of the range that was seen, one width for the tensor; hardened, kernels need its spec alone."""
    x = INPUT if word.startswith("a6") else jnp.abs(INPUT)
    plan = lb.bind(model, {"a": hgq(f"w6,{word}")}, PARAMS, x)
    state = lb.calibrate(model, plan, PARAMS, [(x,)])
    state["learn"]["a"]["input"]["fraction"] -= 1.7  # as training would
    quantizer: Any = next(site.quantizer for site in plan["a"].sites if not site.is_weight)
    its = {part: state[part]["a"]["input"] for part in ("learn", "fixed")}
    found = np.asarray(quantizer.fake(its, x, Operand(x.shape, contract=(1,))), np.float64)
    signed, whole = word.startswith("a6"), np.ceil(np.log2(np.abs(np.asarray(x)).max()))
    step = 2.0 ** -np.round(6 - signed - whole - 1.7)
    wide = np.asarray(x, np.float64)
    np.testing.assert_array_equal(found, np.clip(np.round(wide / step) * step, -signed * 2.0**whole, 2.0**whole - step))
    hard, its_state = lb.harden(plan, state)
    site = next(site for site in hard["a"].sites if not site.is_weight)
    assert site.spec is not None
    assert site.spec.format.name == ("int4" if signed else "uint4")
    qparams = lb.pack(hard, PARAMS, its_state)
    lb.save(tmp_path / "m", hard, qparams)
    again, its_params = lb.load(tmp_path / "m")
    served = lb.simulate(model, hard)(PARAMS, its_state, x)
    np.testing.assert_array_equal(served, lb.simulate(model, plan)(PARAMS, state, x))
    np.testing.assert_allclose(lb.execute(model, again)(its_params, x), served, rtol=1e-5, atol=1e-5)


def test_hgq_has_one_to_eight_bits():
    quantizer: Any = hgq("w6/tensor").weight
    whole = jnp.full((1, 1), 3.0)
    for fraction, bits in ((-9.0, 1.0), (1.4, 5.4), (40.0, 8.0)):
        state = {"learn": {"fraction": jnp.full((1, 1), fraction)}, "fixed": {"whole": whole}}
        assert float(quantizer.widths(state)[0, 0]) == pytest.approx(bits)
        codes = quantizer.quantize(state, jnp.asarray(X), Operand(X.shape, contract=(1,))).codes
        assert len(np.unique(codes)) <= 2.0 ** round(bits)


def test_deep_compression_gradients():
    """Eq. (3): the gradient of a level is the sum of those of its weights, times their scale here; between the ends 1 for a weight."""
    learned = np.array([-33.3, -8.2, -3.0, 2.4, 5.0, 14.0, 30.2])
    scale = np.array([[0.25], [0.125]])
    quantizer = deep_compression("w3").weight
    value, to_learn, to_x = pulled(quantizer, {"levels": jnp.float32(learned)}, {"scale": jnp.float32(scale)})
    levels = np.sort(np.append(np.round(learned), 0.0))
    place = X.astype(np.float64) / scale
    index = np.searchsorted((levels[1:] + levels[:-1]) / 2, place)
    np.testing.assert_array_equal(value, levels[index] * scale)
    close(to_x, G * ((place > levels[0]) & (place < levels[-1])), np.abs(G))
    pull = G * scale
    sums = np.array([pull[index == k].sum() for k in range(8) if levels[k]])
    close(to_learn["levels"], sums, np.array([np.abs(pull[index == k]).sum() for k in range(8) if levels[k]]))


def test_trained_levels_start_below_the_error_of_even_ones():
    w = heavy_tailed(7, 128, 32)
    plan = lb.bind(lambda p, x: x @ p["w"], {"**": deep_compression("w3/g32")}, {"w": w}, jnp.ones((1, 128)))
    state = lb.init(lambda p, x: x @ p["w"], plan, {"w": w}, jnp.ones((1, 128)))
    site: Any = plan["w"].weight
    found = site.quantizer.fake({part: state[part]["w"]["weight"] for part in ("learn", "fixed")}, w, site.operand)
    even = lb.quantize_array(w, "int3/g32").dequantize()
    assert jnp.sum((found - w) ** 2) < 0.8 * jnp.sum((even - w) ** 2)


def model(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


PARAMS, INPUT = {"a": normal(1, 32, 12), "b": normal(2, 12, 6)}, normal(3, 9, 32)


def trained(rules, beta):
    """The plan and its state after a few steps on the squared error plus ``beta`` times the mean width."""
    plan = lb.bind(model, rules, PARAMS, INPUT)
    state = lb.init(model, plan, PARAMS, INPUT)
    right, counts = model(PARAMS, INPUT), {key: w.size for key, w in PARAMS.items()}

    @jax.jit
    def slope(learn):
        now = {**state, "learn": learn}
        bits = widths(plan, now)
        mean = sum(counts[key] * bits[key] for key in bits) / sum(counts.values())
        return jnp.mean((lb.simulate(model, plan)(PARAMS, now, INPUT) - right) ** 2) + beta * mean

    step = jax.jit(lambda learn: jax.tree.map(lambda v, g: v - jnp.sign(g) * 0.3, learn, jax.grad(slope)(learn)))
    learn = state["learn"]
    for _ in range(12):
        learn = step(learn)
    return plan, {**state, "learn": learn}


def test_widths_follow_their_price_and_are_packed_as_learned():
    """A dearer bit leaves fewer; hardened, the values are the same to the last bit, and take the bits of the widest block."""
    means = []
    for beta in (1e-4, 1.0):
        plan, state = trained({"a": hgq("w6/channel"), "b": hgq("w6/tensor")}, beta)
        means.append(np.mean([float(bits) for bits in widths(plan, state).values()]))
    assert means[1] < means[0] - 1.0
    plan, state = trained({"a": hgq("w6/channel"), "b": hgq("w6/tensor")}, 0.02)
    with pytest.raises(ValueError, match=r"the weight of 'a' has learned widths .* lowbit\.harden"):
        lb.pack(plan, PARAMS, state)
    hard, its_state = lb.harden(plan, state)
    np.testing.assert_array_equal(
        lb.simulate(model, hard)(PARAMS, its_state, INPUT), lb.simulate(model, plan)(PARAMS, state, INPUT)
    )
    packed = lb.pack(hard, PARAMS, its_state).weights()
    for key, q in packed.items():
        fraction, whole = (
            np.asarray(t[key]["weight"][n]) for t, n in ((state["learn"], "fraction"), (state["fixed"], "whole"))
        )
        assert q.spec.format.bits == max(int(np.round(fraction + whole + 1).max()), 2)
        codes = np.asarray(q.unpacked_codes(), np.float64)
        bits = np.round(np.clip(fraction + whole + 1, 1, 8))
        assert (codes >= -(2 ** (bits - 1))).all()
        assert (codes < 2 ** (bits - 1)).all()
    assert lb.harden(hard, its_state) == (hard, its_state)
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(lambda learn: lb.harden(plan, {**state, "learn": learn})[1])(state["learn"])


def test_a_trained_codebook_is_a_format(tmp_path):
    plan, state = trained({"**": deep_compression("w3/g8")}, 0.0)
    hard, its_state = lb.harden(plan, state)
    simulated = lb.simulate(model, plan)(PARAMS, state, INPUT)
    np.testing.assert_array_equal(lb.simulate(model, hard)(PARAMS, its_state, INPUT), simulated)
    qparams = lb.pack(hard, PARAMS, its_state)
    lb.save(tmp_path / "m", hard, qparams)
    again, its_params = lb.load(tmp_path / "m")
    wanted = np.asarray(lb.execute(model, hard)(qparams, INPUT))
    np.testing.assert_array_equal(lb.execute(model, again)(its_params, INPUT), wanted)
    np.testing.assert_allclose(wanted, simulated, rtol=1e-5, atol=1e-5)
    formats: dict[str, Any] = {key: q.spec.format for key, q in qparams.weights().items()}
    for key, form in formats.items():
        learned = np.asarray(state["learn"][key]["weight"]["levels"])
        assert form.bits == 3
        assert form.levels == tuple(np.unique(np.append(np.clip(np.round(learned), -127, 127), 0.0)))
    site: Any = plan["a"].weight
    with pytest.raises(ValueError, match="1 to 7 bits"):
        dataclasses.replace(site.quantizer, bits=8)


@pytest.mark.parametrize("factory", [hgq, deep_compression])
@pytest.mark.parametrize("text", ["a8", "wnf4", "wternary", "wint16", "wuint4", "w4/affine", "w4/narrow", "w4/g32/dq"])
def test_what_has_no_learned_form_is_refused(factory, text):
    if factory is deep_compression and text.endswith("dq"):
        text = "w8"
    with pytest.raises(ValueError, match=r"hgq|HGQ|deep_compression|codebook|levels"):
        factory(text)


def test_every_method_is_here_or_there():
    """A new quantizer brings its equations: in a file of its own name, ``test_abc.py``, or in one of these two."""
    files = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(factories()) <= files | set(vars(test_gradients)) | set(globals())
