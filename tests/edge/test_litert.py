"""LiteRT, TFLite-Micro and Vela: converted, audited, run, compared. Needs the extra ``edge``; fails without it."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.export import litert, stablehlo
from lowbit.export.litert.audit import Contents
from lowbit.export.litert.write import CONTENTS, MODEL
from lowbit.export.verify import verify
from tests.interpret.integer_models import WHOLE

from .models import accuracy, digits_cnn, packed

INT8 = {"**": "w8,a8"}
INT4 = {"*Dense*/**": "w4/tensor,a8", "**": "w4,a8"}


def _rows(bundle, targets):
    return {row.target: row for row in verify(bundle.path, targets).rows}


def _count(bundle):
    return sum(int(np.prod(weight["shape"])) for weight in bundle.manifest["weights"])


def _kernels(bundle):
    return [op.name for op in Contents.of((bundle.path / CONTENTS).read_text()).operators]


def test_the_int8_cnn_has_the_same_bits_everywhere(tmp_path):
    """One rounding, to even: XLA, IREE and XNNPACK agree on 640 results but for a value on the edge of two steps."""
    model = digits_cnn(64)
    plan, qparams = packed(model, INT8, integer=True)
    targets = ["iree", "xla-universal", "iree-universal", "litert"]
    bundle = lb.export(model.fn, plan, qparams, model.args, tmp_path / "m", targets=targets, integer_io=True)
    rows = _rows(bundle, targets)
    assert rows["iree"].difference == 0.0
    for name in targets[1:]:
        assert rows[name].status in ("exact", "close"), rows[name]
        assert (rows[name].difference or 0.0) <= 1.0
        assert (rows[name].share or 0.0) <= 0.005
    assert rows["litert"].measured["float_kernels"] == 0
    assert _kernels(bundle) == ["DEPTHWISE_CONV_2D", "CONV_2D", "RESHAPE", "FULLY_CONNECTED", "FULLY_CONNECTED"]
    outputs = bundle.vectors()[1][0]
    assert abs(accuracy(model, outputs) - accuracy(model, np.asarray(model.fn(model.params, *model.args)))) <= 0.05


@pytest.mark.parametrize(("rules", "bits"), [(INT8, 8), (INT4, 4), ({"*Dense*/**": "w2,a8", "**": "w4,a8"}, 2)])
def test_weights_keep_their_width(rules, bits, tmp_path):
    model = digits_cnn(1)
    plan, qparams = packed(model, rules, integer=True)
    targets = ["iree-universal", "litert"]
    bundle = lb.export(model.fn, plan, qparams, model.args, tmp_path / "m", targets=targets, integer_io=True)
    rows = _rows(bundle, targets)
    assert bundle.manifest["tools"]["litert-converter"]
    stored = sum(int(np.prod(w["shape"])) * w["stored_bits"] for w in bundle.manifest["weights"]) / 8
    assert stored <= _count(bundle) * bits / 8 + (5_000 if bits == 2 else 0)
    assert (bundle.path / MODEL).stat().st_size <= stored + 16 * 1024
    universal = rows["iree-universal"]
    if universal.status == "failed":  # where vectors are short: see `lowbit.export.iree._MASKED`
        assert bits == 2
        assert "vector.maskedload" in universal.detail
    else:
        assert universal.bytes is not None
        assert universal.bytes <= stored + 32 * 1024
    assert rows["litert"].bits_per_weight == pytest.approx(8 * stored / _count(bundle), abs=0.01)


@pytest.mark.parametrize("rules", [INT8, INT4], ids=["int8", "int4"])
def test_the_cnn_on_a_microcontrollers_runtime(rules, tmp_path):
    """Bound with its rounding, TFLite-Micro gives the served codes, all of them."""
    model = digits_cnn(64)
    plan, qparams = packed(model, rules, integer=True, rounding="gemmlowp_double")
    targets = ["tflm", "litert"]
    bundle = lb.export(model.fn, plan, qparams, model.args, tmp_path / "m", targets=targets, integer_io=True)
    rows = _rows(bundle, targets)
    assert rows["tflm"].status == "exact"
    assert rows["tflm"].measured["arena_bytes"] > 0
    assert rows["litert"].status == "close"
    assert "rounding='exact'" in rows["litert"].detail or rules is INT4


@pytest.mark.parametrize("integer_io", [True, False])
def test_velas_report(integer_io, tmp_path):
    model = digits_cnn(1)
    plan, qparams = packed(model, INT8, integer=True)
    bundle = lb.export(
        model.fn, plan, qparams, model.args, tmp_path / "m", targets=["vela"], integer_io=integer_io
    )  # fmt: skip
    (row,) = verify(bundle.path, ["vela"]).rows
    assert (row.status, row.difference) == ("reported", None)
    assert row.measured["npu_operators"] > 0
    assert row.measured["cpu_operators"] == (0 if integer_io else 2)
    assert row.measured["sram_bytes"] < 16 * 1024
    assert row.measured["flash_bytes"] < 1.1 * _count(bundle)


_FLOAT = {"residual_cnn": False, "transformer_block": True, "lstm": False, "gru": True}


@pytest.mark.parametrize("name", list(_FLOAT))
def test_whole_models(name, tmp_path):
    """XNNPACK has the served codes; layer norm, softmax and GRU's ``1 - z`` are float islands between grids."""
    case = WHOLE[name]()
    plan = lb.bind(case.fn, INT8, case.params, *case.args, integer=True)
    qparams = lb.pack(plan, case.params, lb.init(case.fn, plan, case.params, *case.args))
    bundle = lb.export(case.fn, plan, qparams, case.args, tmp_path / "m", targets=["litert"])
    (row,) = verify(bundle.path, ["litert"]).rows
    assert row.status in ("exact", "close"), row
    assert (row.share or 0.0) <= 0.05
    assert (row.measured["float_kernels"] > 0) == _FLOAT[name]
    if name != "residual_cnn":
        word = {"transformer_block": "norm", "lstm": "logistic", "gru": "logistic"}[name]
        with pytest.raises(ValueError, match=f"tflm cannot take the {word} at"):
            lb.export(case.fn, plan, qparams, case.args, tmp_path / "n", targets=["tflm"])


@pytest.mark.parametrize(
    ("rule", "rounding", "target", "bits"),
    [("w8,a8", "exact", "litert", 8.0), ("w4,a8", "gemmlowp_double", "tflm", 4.0)],
)
def test_kernels_of_other_shapes(rule, rounding, target, bits, tmp_path):
    """Depthwise, grouped and 1-D convolutions, a pool that averages: integer kernels, and the served codes."""
    rng = np.random.default_rng(0)
    image = ("NHWC", "HWIO", "NHWC")

    def fn(p, x):
        y = lax.conv_general_dilated(x, p["d"], (1, 1), "SAME", dimension_numbers=image, feature_group_count=128)
        y = lax.conv_general_dilated(y, p["g"], (1, 1), "SAME", dimension_numbers=image, feature_group_count=2)
        y = lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4.0
        return lax.conv_general_dilated(y[:, 0], p["l"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))

    shapes = {"d": (3, 3, 1, 128), "g": (1, 1, 64, 32), "l": (3, 32, 16)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    args = (jnp.asarray(rng.normal(size=(2, 4, 6, 128)), jnp.float32),)
    plan = lb.bind(fn, {"**": rule}, params, *args, integer=True, rounding=rounding)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, *args))
    bundle = lb.export(fn, plan, qparams, args, tmp_path / "m", targets=[target], integer_io=True)
    (row,) = verify(bundle.path, [target]).rows
    assert row.status == "exact", row
    assert row.bits_per_weight == bits
    assert not Contents.of((bundle.path / CONTENTS).read_text()).float_operators


def test_what_the_converter_rejects_is_an_error(tmp_path):
    """Its own first line of error, in a process of its own."""

    def convolution(x, k):
        numbers = ("NHWC", "HWIO", "NHWC")
        return [
            lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers, preferred_element_type=jnp.int32)
        ]

    shapes = [jnp.zeros((1, 4, 4, 2), jnp.int8), jnp.zeros((3, 3, 2, 2), jnp.int8)]
    artifact = stablehlo.artifact(stablehlo.module_text(convolution, shapes, "m"), stablehlo.VERSION)
    for data, words in ((artifact, "tfl.pad"), (b"nothing", "")):
        source = tmp_path / "model.mlirbc"
        source.write_bytes(data)
        with pytest.raises(ValueError, match=rf"^the LiteRT converter failed.*: .*{words}"):
            litert.work("convert", str(source), str(tmp_path / "a"), str(tmp_path / "b"), what="the LiteRT converter")


@pytest.mark.parametrize("text", ["w4/g8/int5,a8", "w4/signed,a8"])
def test_signed_and_integer_scales_are_int8_with_positive_ones(text, tmp_path):
    """A derived weight and a parameter; integer kernels alone."""
    rng = np.random.default_rng(20)
    params = {
        k: rng.standard_t(4.0, s).astype(np.float32) for k, s in {"w": (32, 16), "gain": (16,), "v": (16, 8)}.items()
    }
    x = rng.standard_t(4.0, (6, 32)).astype(np.float32)

    def fn(p, x):
        return jnp.maximum(x @ (p["w"] * (jnp.abs(p["gain"]) + 0.5)), 0.0) @ p["v"]

    plan = lb.bind(fn, {"**": text}, params, x, integer=True)
    qparams = lb.pack(plan, params, lb.calibrate(fn, plan, params, [(x,)]))
    bundle = lb.export(fn, plan, qparams, (x,), tmp_path / "m", targets=["litert"], integer_io=True)
    row = _rows(bundle, ["litert"])["litert"]
    assert (row.status, row.difference) == ("exact", 0.0)
    assert row.measured["float_kernels"] == 0
