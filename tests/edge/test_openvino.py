"""Models in OpenVINO, from the ONNX form, against `lowbit.execute`. Needs openvino and onnx: fails without them."""

import pytest

from lowbit.export.bundle import read
from lowbit.export.runners import openvino
from lowbit.export.verify import verify

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
    monkeypatch.setattr(openvino, "OPTIONS", {"INFERENCE_PRECISION_HINT": "f32"})
    (row,) = verify(bundle.path, ["openvino"]).rows
    assert row.status == "differs"


@pytest.mark.parametrize(
    ("machine", "features", "is_so"),
    [
        ("x86_64", "flags : avx2 fma", True),
        ("AMD64", "", True),
        ("x86_64", "flags : avx2 avx_vnni", False),
        ("x86_64", "flags : avx512_vnni", False),
        ("x86_64", "flags : amx_int8", False),
        ("aarch64", "Features : asimd", False),
    ],
)
def test_where_its_sums_saturate(machine, features, is_so):
    assert openvino.saturates(machine, features) == is_so


def test_what_it_rejects_is_said(tmp_path):
    bundle = exported(CNN, {"**": "w8,a8"}, tmp_path / "m")
    (bundle.path / "onnx" / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="OpenVINO failed: "):
        openvino.RUN["openvino"](bundle, bundle.vectors()[0])
    with pytest.raises(ValueError, match="was altered"):
        read(bundle.path)
