"""Signed scales and integer scales of groups, exported: the artifact gives the bits that are served."""

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.export import verify
from lowbit.export.codes import positive
from lowbit.formats.lookup import spec_from_text
from lowbit.packed.arrays import quantize_array
from lowbit.targets.refusals import violations
from lowbit.targets.table import TARGETS
from tests.values import heavy_tailed

X = heavy_tailed(0, 3, 40)
PARAMS = {"w": heavy_tailed(1, 40, 18), "v": heavy_tailed(2, 18, 9)}


def dense(p, x):
    return jnp.maximum(x @ p["w"], 0.0) @ p["v"]


def packed(text, **options):
    plan = lb.bind(dense, {"**": text}, PARAMS, X, **options)
    return plan, lb.pack(plan, PARAMS, lb.calibrate(dense, plan, PARAMS, [(X,)]))


@pytest.mark.parametrize("text", ["w4/g8/int5,a8", "w4/g8/signed,a8"])
def test_stablehlo_and_c_are_exact(text, tmp_path):
    plan, qparams = packed(text)
    bundle = lb.export(dense, plan, qparams, (X,), tmp_path / "float", targets=["xla"])
    (row,) = verify.verify(bundle.path, ["xla"], run_code=True).rows
    assert row.status == "exact"
    plan, qparams = packed(text, integer=True)
    bundle = lb.export(dense, plan, qparams, (X,), tmp_path / "integer", integer_io=True, targets=["c"])
    (row,) = verify.verify(bundle.path, ["c"], run_code=True).rows
    assert (row.status, row.difference) == ("exact", 0.0)


def computed(p, x):
    return jnp.maximum(x @ (p["w"] * p["gain"]) + p["bias"], 0.0) @ p["v"]


def test_forms_with_positive_scales_keep_the_sign_of_multipliers(tmp_path):
    """Codes are negated with their scales, multipliers and biases with both: full-integer plans, a derived weight among them."""
    params = {**PARAMS, "gain": jnp.abs(heavy_tailed(4, 18)) + 0.5, "bias": heavy_tailed(5, 18)}
    plan = lb.bind(computed, {"w": "w4/signed,a8", "v": "w4/tensor/signed,a8"}, params, X, integer=True)
    qparams = lb.pack(plan, params, lb.calibrate(computed, plan, params, [(X,)]))
    scales = [q.scale_values for q in qparams.weights().values()]
    assert all((scale < 0).any() for scale in scales)
    targets = ["xla-universal", "xla-quantized"]
    bundle = lb.export(computed, plan, qparams, (X,), tmp_path / "m", integer_io=True, targets=targets)
    found = {
        row.target: (row.status, row.difference) for row in verify.verify(bundle.path, targets, run_code=True).rows
    }
    assert found == dict.fromkeys(targets, ("exact", 0.0))


def test_forms_with_positive_scales_hold_int8():
    x = heavy_tailed(3, 12, 32)
    for text in ("int4/g8/signed", "int4/g8/int5", "int3/signed"):
        q = quantize_array(x, text, packed=False)
        held = positive(q.merged())
        assert (np.asarray(held.scale) > 0).all()
        assert held.spec.format.name == "int8"
        np.testing.assert_array_equal(held.dequantize(), q.dequantize())
    bad = quantize_array(-jnp.abs(x), "int8/signed", packed=False)
    assert (np.asarray(bad.codes) == -128).any()
    turned = quantize_array(jnp.abs(x), "int8/signed", packed=False)
    with pytest.raises(ValueError, match="128, the negative of a code, is none of int8"):
        positive(turned)
    plain = quantize_array(x, "int4", packed=False)
    assert positive(plain) is plain


def test_a_target_is_asked_for_what_it_is_given():
    plan, _ = packed("w4/g8/int5,a8")
    assert not [v for v in violations(plan, TARGETS["litert"]) if v.role == "weight"]
    grouped, _ = packed("w4/g8/signed,a8")
    assert [v for v in violations(grouped, TARGETS["litert"]) if v.role == "weight"]
    assert spec_from_text("int4/g8/sym/int5", is_weight=True).merged.text == "int8/channel/sym"
