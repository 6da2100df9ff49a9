"""Deep compression: gradients of shared levels in float64, their start, and a trained codebook as a format."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.quantizers.deep_compression import deep_compression
from tests.quantizers.learned import INPUT, PARAMS, G, X, close, model, pulled, trained
from tests.values import heavy_tailed


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


@pytest.mark.parametrize("text", ["a8", "wnf4", "wternary", "wint16", "wuint4", "w4/affine", "w4/narrow", "w8"])
def test_what_has_no_learned_form_is_refused(text):
    with pytest.raises(ValueError, match=r"hgq|HGQ|deep_compression|codebook|levels"):
        deep_compression(text)
