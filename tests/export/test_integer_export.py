"""Full-integer plans as StableHLO without floats, run by IREE and as C: the same bits as `lowbit.execute`."""

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.export import iree
from lowbit.export.integer import audit
from lowbit.export.verify import verify
from tests.interpret.integer_models import WHOLE, audio_net, token_transformer

MODELS = {**WHOLE, "audio_net": audio_net, "token_transformer": token_transformer}


def _packed(name, rounding="exact", rule="w8,a8"):
    case = MODELS[name]()
    rules = {"Embed_0/*": "w8,a8", "**": rule} if name == "token_transformer" else {"**": rule}
    plan = lb.bind(case.fn, rules, case.params, *case.args, integer=True, rounding=rounding)
    return case, plan, lb.pack(plan, case.params, lb.init(case.fn, plan, case.params, *case.args))


@pytest.mark.parametrize(
    ("name", "rounding", "rule"),
    [
        ("residual_cnn", "gemmlowp_double", "w8,a8"),
        ("lstm", "tflite_single", "w8,a8"),
        pytest.param("audio_net", "exact", "w8,aint16", marks=pytest.mark.slow),
        pytest.param("token_transformer", "exact", "w4/g4,a8", marks=pytest.mark.slow),
        pytest.param("transformer_block", "exact", "w8,a8", marks=pytest.mark.slow),
        pytest.param("transformer_block", "gemmlowp_double", "w4,aint16", marks=pytest.mark.slow),
    ],
)
def test_codes_in_and_out_leave_no_float(name, rounding, rule, tmp_path):
    case, plan, qparams = _packed(name, rounding, rule)
    given = np.int32 if name == "token_transformer" else np.int16 if "16" in rule else np.int8
    bundle = lb.export(case.fn, plan, qparams, case.args, tmp_path / "model", integer_io=True, targets=["iree", "c"])
    assert bundle.manifest["float_operations"] == {}
    assert bundle.manifest["rounding"] == rounding
    inputs, outputs = bundle.vectors()
    assert [x.dtype for x in (*inputs, *outputs)] == [given, np.int16 if "16" in rule else np.int8]
    got = iree.run(iree.compile_artifact(bundle.artifact), inputs)
    np.testing.assert_array_equal(got[0], outputs[0])
    assert verify(bundle.path, ["c"], run_code=True).rows[0].status == "exact"
    entry = bundle.manifest["outputs"][0]
    served = lb.execute(case.fn, plan)(qparams, *case.args)
    values = (outputs[0].astype(np.int32) - entry["zero_point"]).astype(np.float32) * np.float32(entry["scale"])
    np.testing.assert_array_equal(values, served)


def test_floats_in_and_out_have_only_the_named_boundary(tmp_path):
    case, plan, qparams = _packed("residual_cnn")
    bundle = lb.export(case.fn, plan, qparams, case.args, tmp_path / "model")
    assert set(bundle.manifest["float_operations"]) == {"lowbit.quantize", "lowbit.dequantize"}
    inputs, outputs = bundle.vectors()
    np.testing.assert_array_equal(outputs[0], lb.execute(case.fn, plan)(qparams, *case.args))
    got = iree.run(iree.compile_artifact(bundle.artifact), inputs)
    np.testing.assert_array_equal(got[0], outputs[0])
    text = (bundle.path / "model.mlir").read_text()
    with pytest.raises(ValueError, match=r"still computes in floats: .* in lowbit\.quantize"):
        audit(text, has_integer_io=True)


def test_the_audit_finds_a_float(tmp_path):
    fn, params = (lambda p, x: jnp.tanh(x @ p["w"])), {"w": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)}
    x = jnp.linspace(-2.0, 1.0, 16).reshape(2, 8)
    plan = lb.bind(fn, {"**": "w8,a8"}, params, x)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    bundle = lb.export(fn, plan, qparams, (x,), tmp_path / "model")
    with pytest.raises(ValueError, match=r"tanh.* in main"):
        audit((bundle.path / "model.mlir").read_text(), has_integer_io=False)
    with pytest.raises(ValueError, match="integer_io needs a full-integer plan"):
        lb.export(fn, plan, qparams, (x,), tmp_path / "other", integer_io=True)
