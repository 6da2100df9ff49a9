"""HGQ: gradients by its algorithm in float64, inputs, widths that follow their price and are packed as learned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core.spec import Operand
from lowbit.learn.harden import widths
from lowbit.quantizers.hgq import hgq
from tests.quantizers.learned import INPUT, PARAMS, G, X, close, model, pulled, trained


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


@pytest.mark.parametrize("text", ["a8", "wnf4", "wternary", "wint16", "wuint4", "w4/affine", "w4/narrow", "w4/g32/dq"])
def test_what_has_no_learned_form_is_refused(text):
    with pytest.raises(ValueError, match=r"hgq|HGQ|deep_compression|codebook|levels"):
        hgq(text)
