"""The universal form: composites around integer constants, with numbers that any compiler computes."""

import dataclasses
import functools
import json
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.core.qtensor import quantize_with
from lowbit.export import composites, litert, stablehlo
from lowbit.export.composites import Grid
from lowbit.export.litert import audit, convert, prepare
from lowbit.export.storage import Stored
from lowbit.export.universal.full_integer import absorbed
from lowbit.export.universal.values import weight_grid
from lowbit.export.verify import compared, verify
from lowbit.formats.lookup import specs
from lowbit.plan.rows import Step
from lowbit.targets.refusals import check
from lowbit.targets.table import TARGETS
from tests.values import heavy_tailed

from . import cases

BOTH = ["xla-universal", "iree-universal"]


def _exported(fn, rules, params, args, path, **options):
    has_codes = options.pop("integer_io", False)
    targets = options.pop("targets", BOTH)
    plan = lb.bind(fn, rules, params, *args, **options)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, *args))
    bundle = lb.export(fn, plan, qparams, args, path, targets=targets, integer_io=has_codes)
    return bundle, (bundle.path / "universal/model.mlir").read_text()


@pytest.mark.parametrize("text", ["a8", "auint6", "aint16"])
def test_composites_compute_what_quantizing_computes(text):
    spec = specs(f"w8,{text}")[1]
    assert spec is not None
    scale = jnp.asarray([[0.05, 0.3, 0.011]])
    zeros = jnp.full((1, 3), 3.0)
    x = 8.0 * heavy_tailed(0, 100, 3)
    q = quantize_with(x, spec, scale, zeros, (100, 1))
    grid = Grid(
        f"{'i' if spec.format.is_signed else 'ui'}{spec.format.bits}", tuple(map(float, scale[0])), (3, 3, 3), 1
    )
    assert grid.bounds == (spec.format.low, spec.format.high)
    codes = composites.quantize(x, grid)
    np.testing.assert_array_equal(codes, q.encode().codes)
    for got in (composites.dequantize(codes, grid), composites.fake_quant(x, grid)):
        np.testing.assert_array_equal(got, q.dequantize())
        assert len(np.unique(got)) > 9


def test_a_composite_says_its_grid_and_has_its_arithmetic():
    codes = jnp.asarray(np.arange(-8, 8).reshape(4, 4), jnp.int4)
    grid = Grid("i4", (0.5, 0.25, 1.0, 2.0), (0, 1, 2, -3), 1)
    text = stablehlo.module_text(lambda: [composites.dequantize(codes, grid)], [], "m")
    line = next(line for line in text.splitlines() if "stablehlo.composite" in line)
    for part in (
        '"quant.dequantize"', 'dtype = "i4"', "narrow_range = false", "quantization_dimension = 1 : i32", "tensor<4xf32>",
        "zero_point = dense<[0, 1, 2, -3]> : tensor<4xi64>", "(tensor<4x4xi4>) -> tensor<4x4xf32>",
    ):  # fmt: skip
        assert part in line
    body = text[text.index("@quant.dequantize(") :]
    assert "stablehlo.subtract" in body
    assert "stablehlo.multiply" in body


@functools.cache
def _mlp():
    params = {"a": heavy_tailed(0, 64, 48), "b": heavy_tailed(1, 48, 10), "c": heavy_tailed(2, 48)}
    args = (heavy_tailed(3, 4, 64),)
    plan = lb.bind(cases.two_layers, {"**": "w4,a8"}, params, *args, integer=True)
    return plan, lb.pack(plan, params, lb.init(cases.two_layers, plan, params, *args)), args


def test_weights_are_integers_of_their_width(tmp_path):
    plan, qparams, args = _mlp()
    bundle = lb.export(cases.two_layers, plan, qparams, args, tmp_path / "m", targets=BOTH)
    text = (bundle.path / "universal/model.mlir").read_text()
    found = re.findall(r'composite "quant\.(\w+)".*-> tensor<(\w+)>', text)
    assert found[:2] == [("fake_quant", "4x64xf32"), ("dequantize", "64x48xf32")]
    assert "tensor<64x48xi4>" in text
    assert not [c for c in stablehlo.contents(text).constants if c.element == "f32" and c.bits > 32 * 64]
    with zipfile.ZipFile(bundle.path / "universal/model.zip") as archive:
        assert archive.read("model.mlirbc") == (bundle.path / "universal/model.mlirbc").read_bytes()
    files = bundle.manifest["files"]
    assert files["universal/model.zip"]["bytes"] < 0.8 * files["universal/model.mlirbc"]["bytes"]
    assert "universal/model.zip" in bundle.manifest["forms"]["universal"]
    rows = verify(bundle.path, BOTH).rows
    assert [row.status for row in rows] == ["exact", "exact"]
    assert rows[1].bytes is not None
    assert rows[1].bytes <= 0.5 * (64 * 48 + 48 * 10) + 32 * 1024


def test_codes_in_and_out(tmp_path):
    plan, qparams, args = _mlp()
    bundle = lb.export(cases.two_layers, plan, qparams, args, tmp_path / "m", targets=BOTH[:1], integer_io=True)
    text = (bundle.path / "universal/model.mlir").read_text()
    assert 'composite "quant.dequantize" %arg0' in text
    assert 'composite "quant.quantize"' in text
    assert re.search(r"%arg0: tensor<4x64xi8>\) -> \(tensor<4x10xi8>", text)
    (row,) = verify(bundle.path, BOTH[:1]).rows
    assert (row.status, row.unit) == ("exact", "steps")


@pytest.mark.parametrize(
    ("rules", "statuses", "weights"),
    [
        ("w4/g16,a8", ["exact"], 0),
        ("w8/affine,a8/dynamic", ["close"], 2),
        ("wfp4_e2m1/g16", ["close"], 0),
    ],
)
def test_ordinary_plans(rules, statuses, weights, tmp_path):
    """Blocks are one batched dot, scaled and summed in the served order: the same bits where inputs are integers."""
    params = {"a": heavy_tailed(0, 64, 48), "b": heavy_tailed(1, 48, 10), "c": heavy_tailed(2, 48)}
    args = (heavy_tailed(3, 4, 64),)
    bundle, text = _exported(cases.two_layers, {"**": rules}, params, args, tmp_path / "m", targets=BOTH[:1])
    assert [row.status for row in verify(bundle.path, BOTH[:1]).rows] == statuses
    assert text.count('composite "quant.dequantize"') == weights
    if "g16" in rules:
        assert re.search(r"stablehlo.dot_general .*batching_dims = \[0, 1\]", text)


def test_a_factor_goes_into_the_scale_where_it_is_positive():
    spec = specs("w8,a8")[0]
    assert spec is not None
    weight = quantize_with(heavy_tailed(0, 16, 3), spec, jnp.asarray([[0.1, 0.2, 0.4]]), None, (16, 1)).encode()
    grid = weight_grid(weight)
    assert grid is not None
    assert grid == Grid("i8", tuple(float(np.float32(s)) for s in (0.1, 0.2, 0.4)), (0, 0, 0), 1)
    found = absorbed(weight, grid, np.asarray([[2.0, 1.0, 0.5]]), 1, -1)
    assert found is not None
    np.testing.assert_allclose(found.scale, [0.2, 0.2, 0.2], rtol=1e-6)
    assert absorbed(weight, grid, np.asarray([[2.0, 1.0, -0.5]]), 1, -1) is None
    assert absorbed(weight, grid, np.asarray([[2.0], [1.0], [0.5]]), 1, -1) is None, "along another axis"


def test_a_step_is_the_tolerance_of_a_float_result():
    manifest = {"outputs": [{"name": "y", "scale": 0.1}], "allowed": None}
    wanted = [np.float32(0.1) * np.arange(-100, 100, dtype=np.float32)]
    moved = [wanted[0] + np.float32(0.1) * (np.arange(200) % 2).astype(np.float32)]
    assert compared(manifest, moved, wanted, steps=1)["status"] == "close"
    assert compared(manifest, moved, wanted)["status"] == "differs"
    assert compared(manifest, [wanted[0] + np.float32(0.11)], wanted, steps=1)["status"] == "differs"


def test_litert_gets_what_its_converter_folds():
    """A depthwise kernel as rounded floats, an average pool as ones, a line as an image, a scan written out: same numbers."""

    def weight(seed, *shape):
        codes = jnp.asarray(jnp.clip(10.0 * heavy_tailed(seed, *shape), -127, 127), jnp.int8)
        scales = tuple(float(s) for s in np.linspace(0.01, 0.02, shape[-1], dtype=np.float32))
        return lambda: composites.dequantize(codes, Grid("i8", scales, (0,) * shape[-1], len(shape) - 1))

    depthwise, line, dense = weight(0, 3, 3, 1, 8), weight(1, 3, 8, 4), weight(2, 4, 4)

    def universal(x, rows):
        y = lax.conv_general_dilated(
            x, depthwise(), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=8
        )
        y = lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4.0
        y = lax.conv_general_dilated(y[:, 0], line(), (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
        return y, lax.scan(lambda h, v: ((h + v) @ dense(), h), rows[0], rows, reverse=True)[1]

    args = (heavy_tailed(3, 2, 4, 6, 8), heavy_tailed(4, 5, 2, 4))
    closed = jax.make_jaxpr(universal)(*args)
    function = prepare.Prepared(closed)
    ready = jax.make_jaxpr(function)(*args)
    names, left = ([eqn.primitive.name for eqn in c.jaxpr.eqns] for c in (closed, ready))
    assert {"reduce_window_sum", "scan"} <= set(names)
    assert not {"reduce_window_sum", "scan"} & set(left)
    convolutions = [eqn for eqn in ready.jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
    assert [len(eqn.params["window_strides"]) for eqn in convolutions] == [2, 2, 2]
    made = {v: eqn.primitive.name for eqn in ready.jaxpr.eqns for v in eqn.outvars}
    kernels = [made[eqn.invars[1]] for eqn in convolutions]
    assert kernels == ["quant_fake_quant", "quant_fake_quant", "quant_dequantize"]
    assert left.count("quant_dequantize") == 2, "a weight that a scan reads is one constant"
    assert function.weights == [(72, 8), (96, 8), (16, 8)]
    for want, got in zip(jax.jit(universal)(*args), jax.jit(function)(*args), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # up to 96 float32 products a sum, in another order


def _contents(operators, tensors, weights=()):
    fields = ("type", "shape", "constant_bytes", "scale", "zero_point")
    listed = [dict(zip(fields, (*t, [0.5], [0])[:5], strict=True)) for t in tensors]
    ops = [{"name": n, "inputs": i, "outputs": o} for n, i, o in operators]
    return audit.Contents.of(json.dumps({"operators": ops, "tensors": listed, "weights": weights}))


def test_the_audit_of_a_litert_model():
    plan = _mlp()[0]
    x, y, w4 = ("INT8", [2, 64], 0), ("INT8", [2, 48], 0), ("INT4", [48, 64], 1536)
    good = _contents([("FULLY_CONNECTED", [0, 1], [2])], [x, w4, y], [(3072, 4)])
    good.check(plan)
    assert good.stored == (Stored(3072, 4 * 3072),)
    both = _contents([], [w4, ("INT8", [64, 48], 3072), x], [(3072, 4), (3072, 4), (96, 4)])
    assert sorted(both.stored) == [(3072, 4 * 3072), (3072, 8 * 3072)]  # one was widened, one merged away
    wide = _contents([("FULLY_CONNECTED", [0, 1], [2])], [x, ("INT8", [48, 64], 3072), y], [(3072, 4)])
    with pytest.raises(ValueError, match=r"stored a weight of 3,072 elements as INT8, not in 4 bits"):
        wide.check(plan)
    floats = [("FLOAT32", [48, 64], 0), ("FLOAT32", [2, 64], 0), ("FLOAT32", [2, 48], 0)]
    steps = [
        ("DEQUANTIZE", [1], [3]),
        ("DEQUANTIZE", [0], [4]),
        ("FULLY_CONNECTED", [4, 3], [5]),
        ("QUANTIZE", [5], [2]),
    ]
    with pytest.raises(
        ValueError,
        match=r"would compute DEQUANTIZE, FULLY_CONNECTED \(a\) of this full-integer plan in floats",
    ):
        _contents(steps, [x, w4, y, *floats], [(3072, 4)]).check(plan)
    with pytest.raises(ValueError, match="left operations that no LiteRT runtime has: STABLEHLO_COMPOSITE"):
        _contents([("STABLEHLO_COMPOSITE", [0], [2])], [x, w4, y]).check(plan)
    with pytest.raises(ValueError, match="16-bit tensors"):
        _contents([("FULLY_CONNECTED", [0, 1], [2])], [("INT16", [2, 64], 0), w4, y], [(3072, 4)]).check(plan)


def test_what_litert_refuses(tmp_path, monkeypatch):
    plan, qparams, args = _mlp()
    with pytest.raises(ValueError, match=r"litert takes full-integer plans only: bind with integer=True"):
        check(dataclasses.replace(plan, steps=()), [TARGETS["litert"]])
    table = Step("a/table_0", "table", ("a",), "a/table_0", absorbed=("tanh",), source="net.py:3")
    curved = dataclasses.replace(plan, steps=(*plan.steps, table))
    check(curved, [TARGETS["litert"]])
    with pytest.raises(
        ValueError,
        match=r"tflm cannot take the tanh at a/table_0 \(net.py:3\): TFLite-Micro computes it in steps of 1/128",
    ):
        check(curved, [dataclasses.replace(TARGETS["tflm"], holds=TARGETS["xla"].holds)])
    monkeypatch.setattr(convert, "is_installed", lambda module: False)
    with pytest.raises(
        ValueError, match=r"needs litert-converter, which is not installed: pip install 'lowbit\[edge\]'"
    ):
        lb.export(cases.two_layers, plan, qparams, args, tmp_path / "m", targets=["litert"])
    assert not (tmp_path / "m").exists()


def test_a_tool_that_fails_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"the tool failed: KeyError: 'nothing'"):
        litert.work("nothing", what="the tool")
    assert litert._signal(-11) == " (SIGSEGV)"
    said = "INFO: a\nloc(1): error: 'tfl.padv2' op operand #0\nTraceback\nRuntimeError: failed\n"
    assert litert._first_error(said) == "'tfl.padv2' op operand #0"
