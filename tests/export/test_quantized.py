"""The quantized form: `!quant.uniform` types that verify, hold the plan's integers and scales, and give its numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.export import stablehlo
from lowbit.export.quantized.checks import check, without_quantized_types
from lowbit.export.quantized.types import QuantType
from lowbit.export.quantized.write import PROGRAM
from lowbit.export.verify import verify
from lowbit.targets.refusals import violations
from lowbit.targets.table import TARGETS

from .cases import normal, signed

XLA, EVERY = ["xla-quantized"], ["xla-quantized", "interpreter-quantized", "iree-quantized"]


def _convolved(x, kernel, stride=1, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def digits(p, x):
    y = jax.nn.relu(_convolved(x, p["k"]) + p["a"])
    y = jax.nn.relu6(_convolved(y, p["l"], 2) + p["b"])
    return y.reshape(len(y), -1) @ p["d"]


def residual(p, x):
    y = jax.nn.relu6(_convolved(x, p["k"], 2) + p["a"])
    z = jax.nn.relu(_convolved(y, p["d"], groups=8) + p["b"])
    y = jax.nn.relu(y + _convolved(z, p["q"]))
    y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean(jax.nn.gelu(_convolved(y, p["g"], groups=2)), (1, 2)) @ p["e"]


def block(p, x):
    y = (x - jnp.mean(x, -1, keepdims=True)) * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5) * p["scale"]
    q, k, v = (jnp.einsum("btd,dhk->bthk", y, p[name]) for name in "qkv")
    scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / 4.0, axis=-1)
    x = x + jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, v), p["o"])
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def recurrent(p, x):
    def turn(hidden, now):
        hidden = jnp.tanh(now @ p["x"] + hidden @ p["h"])
        return hidden, hidden

    return lax.scan(turn, jnp.zeros((x.shape[1], 16)), x)[1] @ p["o"]


MODELS = {
    "digits": (
        digits,
        {"k": normal(0, 3, 3, 1, 16), "a": normal(1, 16), "l": normal(2, 3, 3, 16, 32), "b": normal(3, 32), "d": normal(4, 512, 10)},
        normal(5, 4, 8, 8, 1),
    ),
    "residual": (
        residual,
        {
            "k": normal(0, 3, 3, 3, 8), "a": normal(1, 8), "d": normal(2, 3, 3, 1, 8), "b": normal(3, 8),
            "q": normal(4, 1, 1, 8, 8), "g": normal(5, 3, 3, 4, 8), "e": normal(6, 8, 10),
        },
        normal(7, 2, 12, 12, 3),
    ),
    "block": (
        block,
        {
            **{name: normal(i, 32, 2, 16) for i, name in enumerate("qkv")}, "o": normal(3, 2, 16, 32),
            "scale": 1.0 + 0.1 * normal(4, 32), "up": normal(5, 32, 64), "down": normal(6, 64, 32),
        },
        normal(7, 2, 6, 32),
    ),
    "recurrent": (recurrent, {"x": normal(0, 12, 16), "h": 0.3 * normal(1, 16, 16), "o": normal(2, 16, 5)}, normal(3, 6, 2, 12)),
}  # fmt: skip


def _exported(name, rule, path, *, targets, integer=True, integer_io=False):
    fn, params, x = MODELS[name]
    plan = lb.bind(fn, {"**": rule}, params, x, integer=integer)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    bundle = lb.export(fn, plan, qparams, (x,), path, targets=targets, integer_io=integer_io)
    return bundle, qparams, (bundle.path / "quantized/model.mlir").read_text()


def test_a_cnn_is_typed_from_its_arguments_to_its_results(tmp_path):
    bundle, qparams, text = _exported("digits", "w4,a8", tmp_path / "m", targets=EVERY[:2], integer_io=True)
    assert re.search(r"%arg0: tensor<4x8x8x1x!quant.uniform<i8:f32, .*-> \(tensor<4x10x!quant.uniform<i8:f32, ", text)
    assert not re.search(r"-> tensor<[0-9x]+xi32>", text)  # every sum says its scales
    assert not stablehlo.float_operations(text)
    types = re.findall(r"-> tensor<512x10x(!quant.uniform<i4[^>]*>?:f32:1, [^>]*>)>", text)
    scales = [float(s) for s in types[0].split("{")[1].rstrip("}>").split(",")]
    np.testing.assert_array_equal(np.asarray(scales, np.float32), qparams.weights()["d"].scale_values.ravel())
    assert (bundle.path / "quantized/model.zip").stat().st_size < 0.5 * 512 * 10 + 16 * 1024
    rows = verify(bundle.path, EVERY[:2]).rows
    assert rows[0].status in ("exact", "close")
    assert rows[1].status in ("exact", "close", "not run")  # before jax 0.12 its convolution wraps


@pytest.mark.parametrize(
    ("name", "rule"),
    [("residual", "w8,a8"), pytest.param("block", "w8,a8", marks=pytest.mark.slow), ("recurrent", "w8,a8")],
)
def test_every_kind_of_step_is_within_a_step(name, rule, tmp_path):
    bundle, _, text = _exported(name, rule, tmp_path / "m", targets=EVERY)
    assert {name for names in stablehlo.float_operations(text).values() for name in names} == {
        "stablehlo.uniform_quantize",
        "stablehlo.uniform_dequantize",
    }
    for row in verify(bundle.path, EVERY).rows:
        assert row.status in ("exact", "close", "not run"), row
        assert row.status != "not run" or row.target == "interpreter-quantized"


@pytest.mark.parametrize(("rule", "status"), [("w4,a8", "int"), ("w8", "float")])
def test_ordinary_plans(rule, status, tmp_path):
    """Integers between a quantized input and a quantized weight; a float input and a quantized weight are hybrid."""
    bundle, qparams, text = _exported("digits", rule, tmp_path / "m", targets=XLA, integer=False)
    dots = re.findall(r"stablehlo.dot_general .* : \(tensor<4x512x([^,>]*).*-> tensor<4x10x(.{10})", text)
    assert dots == [("!quant.uniform<i8:f32", "!quant.uni")] if status == "int" else [("f32", "f32>")]
    assert len(qparams.weights()) == 3
    (row,) = verify(bundle.path, XLA).rows
    assert row.status in ("exact", "close"), row


def _replaced(bundle, change):
    """The bundle with another quantized module, checksums in order."""
    path = bundle.path / PROGRAM
    path.write_bytes(stablehlo.artifact(change(stablehlo.text_of(path.read_bytes())), "1.9.0"))
    signed(bundle.path, files=[PROGRAM])


def test_another_scale_fails(tmp_path):
    bundle, _, text = _exported("recurrent", "w8,a8", tmp_path / "m", targets=XLA, integer_io=True)
    scale = re.search(r"-> \(tensor<6x2x5x!quant.uniform<i8:f32, ([0-9.E-]+)", text)
    assert scale is not None
    assert verify(bundle.path, XLA).is_passed
    _replaced(bundle, lambda text: text.replace(scale[1], f"{1.1 * float(scale[1]):.9e}"))
    (row,) = verify(bundle.path, XLA).rows
    assert row.status == "differs"


LEFT, RIGHT = QuantType(8, -128, 127, (0.5,), (3,)), QuantType(8, -7, 7, (0.25, 0.125), (0, 0), 1)
SUM = QuantType.accumulator((0.125, 0.0625), 1)


def _dot(left, right, out):
    return f"""func.func @main(%a: tensor<2x4x{left}>, %w: tensor<4x2x{right}>) -> tensor<2x2x{out}> {{
      %0 = stablehlo.dot_general %a, %w, contracting_dims = [1] x [0] : (tensor<2x4x{left}>, tensor<4x2x{right}>) -> tensor<2x2x{out}>
      return %0 : tensor<2x2x{out}> }}"""


@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        (LEFT, QuantType(4, -7, 7, RIGHT.scale, RIGHT.zero, 1), "mismatched lhs and rhs quantization storage types"),
        (LEFT, QuantType(8, -7, 7, RIGHT.scale, (0, 1), 1), "Zero points of rhs should be 0"),
    ],
)
def test_what_does_not_verify_names_the_operation(left, right, why):
    check(_dot(LEFT, RIGHT, SUM), ["1.0.0", stablehlo.current_version()])
    with pytest.raises(ValueError, match=rf"does not verify: {why} at %0 = stablehlo.dot_general %a, %w"):
        check(_dot(left, right, SUM), ["1.9.0"])


def test_a_sum_has_the_product_of_the_scales():
    """With any other scale, StableHLO's lowering takes the first channel's for all: no error, wrong numbers."""
    args = [np.arange(8, dtype=np.int8).reshape(2, 4), np.arange(8, dtype=np.int8).reshape(4, 2) - 4]
    centered = (args[0].astype(np.int32) - 3) @ args[1].astype(np.int32)
    (got,) = stablehlo.run_in_interpreter(without_quantized_types(_dot(LEFT, RIGHT, SUM)), args)
    np.testing.assert_array_equal(got, centered)
    other = QuantType.accumulator((0.125, 0.125), 1)
    (got,) = stablehlo.run_in_interpreter(without_quantized_types(_dot(LEFT, RIGHT, other)), args)
    assert not np.array_equal(got, centered // [1, 2])


@pytest.mark.parametrize(
    ("rule", "role", "nearest"),
    [
        ("w4/g16,a8", "weight", "int4/channel/sym"),
        ("w8/affine,a8", "weight", "int8/channel/sym"),
        ("w8,a8/dynamic", "input", "int8/tensor/sym"),
        ("w8,aint16", "input", "int8/tensor/sym"),
    ],
)
def test_what_no_type_describes_is_refused(rule, role, nearest):
    plan = lb.bind(lambda p, x: x @ p["w"], {"**": rule}, {"w": jnp.ones((64, 8))}, jnp.ones((2, 64)))
    (found,) = violations(plan, TARGETS["xla-quantized"])
    assert (found.role, found.nearest) == (role, nearest)


def test_layers_of_a_scan_have_no_type(tmp_path):
    def layers(p, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    params, x = {"w": normal(0, 3, 16, 16)}, normal(1, 4, 16)
    plan = lb.bind(layers, {"**": "w8,a8"}, params, x)
    qparams = lb.pack(plan, params, lb.init(layers, plan, params, x))
    with pytest.raises(
        ValueError,
        match=r"no quantized type describes the input of w .*its scales differ between examples or between the turns",
    ):
        lb.export(layers, plan, qparams, (x,), tmp_path / "m", targets=XLA)


def test_a_type_is_exact_in_text():
    scales = tuple(np.random.default_rng(0).uniform(0.0, 1.0, 100).tolist())
    text = str(QuantType.accumulator(scales, 0))
    assert tuple(float(s) for s in text.split("{")[1].rstrip("}>").split(",")) == scales
