"""Models in OpenVINO, from the ONNX form, against `lowbit.execute`. Needs openvino and onnx: fails without them."""

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import lowbit as lb
from lowbit.export.onnx import run as openvino
from lowbit.export.onnx.write import FILE
from lowbit.export.reading import read_bundle
from lowbit.export.verify import verify
from tests.export.cases import normal, signed

from .test_onnx import CNN, Block, Detector, Language, Residual, exported

WHOLE = {"integer": True}


@pytest.mark.parametrize(
    ("kind", "rule", "options", "bits"),
    [
        (CNN, "w8,a8", WHOLE, 8),
        (CNN, "w4,a8", WHOLE | {"integer_io": True}, 4),
        (Residual, "w4,a8", WHOLE, 4),
        (Detector, "w8,a8", WHOLE | {"integer_io": True}, 8),
        (CNN, "w4", {}, 4),
        (Block, "w4/g32", {}, 4),
        (Block, "w4/g32/affine", {}, 4.5),
        (Language, "w4/g16", {}, 4),
    ],
)
def test_models_are_a_step_off_at_most(kind, rule, options, bits, tmp_path):
    bundle = exported(kind, {"**": rule}, tmp_path / "m", **options)
    (row,) = verify(bundle.path, ["openvino"]).rows
    assert row.status in ("exact", "close"), row
    assert row.bits_per_weight == bits


def test_inputs_of_4_bit_weights_are_not_rounded_in_silence(tmp_path, monkeypatch):
    """What OpenVINO does by itself: rows of inputs in 8 bits, a hundred times what float sums in another order change."""
    bundle = exported(Block, {"**": "w4/g32"}, tmp_path / "m")
    inputs, wanted = bundle.vectors()
    found = []
    for options in (openvino.OPTIONS, {"INFERENCE_PRECISION_HINT": "f32"}):
        monkeypatch.setattr(openvino, "OPTIONS", options)
        (got,) = openvino.RUN["openvino"](bundle, [inputs]).outputs
        found.append(float(np.abs(got[0] - wanted[0]).max()))
    assert found[1] > 10 * found[0], found


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("rule", ["w8,a8", "w4,a8"])
def test_sums_of_bytes_are_the_sums(rule, rows, tmp_path):
    """With its transformations to low precision they are not: which are wrong depends on the processor and the rows."""
    params, args = {"a": normal(0, 8, 16), "b": normal(1, 16, 4)}, (normal(2, rows, 8),)

    def dense(params, x):
        return jnp.maximum(x @ params["a"], 0.0) @ params["b"]

    plan = lb.bind(dense, {"**": rule}, params, *args, integer=True)
    qparams = lb.pack(plan, params, lb.init(dense, plan, params, *args))
    bundle = lb.export(dense, plan, qparams, args, tmp_path / "m", integer_io=True, targets=["openvino"])
    (row,) = verify(bundle.path, ["openvino"]).rows
    assert row.status == "exact", row


def test_what_it_rejects_is_said(tmp_path):
    bundle = exported(CNN, {"**": "w8,a8"}, tmp_path / "m")
    path, inputs = bundle.path / FILE, [bundle.vectors()[0]]
    model = onnx.load(str(path))
    model.graph.node[0].op_type = "NoSuchOperator"
    for content, message in ((b"nothing", "no ONNX file"), (model.SerializeToString(), "OpenVINO failed: ")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            openvino.RUN["openvino"](read_bundle(signed(bundle.path, files=[FILE])), inputs)
