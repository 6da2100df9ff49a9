"""C on emulated processors: a Cortex-M4 board and 64-bit Arm. Fails where a compiler or an emulator is missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from experiments.models import digits_transformer
from lowbit.export.c.run import run_cases
from lowbit.export.verify import verify
from tests.interpret.integer_models import WHOLE, audio_net

KILO = 1000


def _conv(x, p, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.nn.relu(
        jax.lax.conv_general_dilated(x, p["w"], (stride, stride), "SAME", dimension_numbers=numbers) + p["b"]
    )


def digits_net(params, x):
    """The CNN of 284 thousand weights: two convolutions, two dense layers, images of 8 x 8."""
    x = _conv(_conv(x, params["conv1"], 1), params["conv2"], 2).reshape(len(x), -1)
    x = jax.nn.relu(x @ params["dense1"]["w"] + params["dense1"]["b"])
    return x @ params["dense2"]["w"] + params["dense2"]["b"]


SHAPES = {"conv1": (3, 3, 1, 32), "conv2": (3, 3, 32, 64), "dense1": (1024, 256), "dense2": (256, 10)}


def _digits():
    """Random weights, and 200 images: ten patterns with noise."""
    rng = np.random.default_rng(0)

    def layer(shape):
        w = rng.normal(size=shape) * (2.0 / np.prod(shape[:-1])) ** 0.5
        return {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(0.05 * rng.normal(size=shape[-1]), jnp.float32)}

    patterns = rng.uniform(size=(10, 8, 8, 1))
    images = np.clip(patterns[np.arange(200) % 10] + 0.2 * rng.normal(size=(200, 8, 8, 1)), 0.0, 1.0)
    return {name: layer(shape) for name, shape in SHAPES.items()}, jnp.asarray(images, jnp.float32)


@pytest.mark.parametrize(
    ("rule", "flash", "bits"), [("w4,a8", 150 * KILO, 4), ("w8,a8", 292 * KILO, 8), ("w2,a8", 80 * KILO, 2)]
)
def test_a_cnn_on_a_microcontroller(rule, flash, bits, tmp_path):
    params, images = _digits()
    plan = lb.bind(digits_net, {"**": rule}, params, images[:1], integer=True)
    qstate = lb.calibrate(digits_net, plan, params, [(images[:64],)])
    qparams = lb.pack(plan, params, qstate)
    targets = ["cortex-m4", "c-aarch64"]
    bundle = lb.export(
        digits_net, plan, qparams, (images[:1],), tmp_path / "b", integer_io=True, targets=targets, name="digits"
    )
    (entry,), (result,) = bundle.manifest["inputs"], bundle.manifest["outputs"]
    codes = np.asarray(jnp.clip(jnp.round(images / entry["scale"]) + entry["zero_point"], -128, 127)).astype(np.int8)
    want = np.asarray(lb.execute(digits_net, plan)(qparams, images))
    assert len(np.unique(want, axis=0)) > 100
    for target in targets:
        found = run_cases(bundle, [[code[None]] for code in codes], target)
        got = np.concatenate([outputs[0] for outputs in found.outputs]).astype(np.int32)
        values = (got - result["zero_point"]).astype(np.float32) * np.float32(result["scale"])
        np.testing.assert_array_equal(values, want)  # 200 images, no mismatch
        assert found.weight_bytes == 283_424 * bits // 8
        print(f"{rule} {target}: flash {found.flash_bytes} B, RAM {found.ram_bytes} B")
        assert found.flash_bytes < flash
        assert found.ram_bytes < 4 * KILO


@pytest.mark.parametrize(
    ("name", "rule", "rounding"),
    [
        ("residual_cnn", "w4,a8", "exact"),
        ("lstm", "w2,a8", "tflite_single"),
        ("gru", "w3/tensor,a8", "gemmlowp_double"),
        ("transformer_block", "w8,a8", "exact"),
        ("transformer_block", "w4,a4", "tflite_single"),
        ("audio_net", "w8,aint16", "exact"),
        ("transformer_block", "w4,aint16", "gemmlowp_double"),
    ],
)
def test_whole_models_are_exact_everywhere(name, rule, rounding, tmp_path):
    case = {**WHOLE, "audio_net": audio_net}[name]()
    plan = lb.bind(case.fn, {"**": rule}, case.params, *case.args, integer=True, rounding=rounding)
    qparams = lb.pack(plan, case.params, lb.init(case.fn, plan, case.params, *case.args))
    targets = ["c", "c-aarch64", "cortex-m4"]
    bundle = lb.export(case.fn, plan, qparams, case.args, tmp_path / "b", integer_io=True, targets=targets)
    for row in verify(bundle.path, targets, run_code=True).rows:
        assert row.status == "exact", row
        print(f"{name} {rule} {row.target}: {dict(row.measured)}, {row.bits_per_weight} bits per weight")


def test_gcc_keeps_the_stores_of_a_transformer(tmp_path):
    """GCC 12 for 64-bit Arm lost those of a norm's first stage, without a warning: see `lowbit.export.c.source`."""
    model = digits_transformer.build(0)
    args = model.state, jnp.asarray(np.random.default_rng(0).uniform(size=(16, 8, 8, 1)), jnp.float32)
    plan = lb.bind(model.fn, {"**": "w8,a8"}, model.params, *args, integer=True)
    qparams = lb.pack(plan, model.params, lb.init(model.fn, plan, model.params, *args))
    bundle = lb.export(model.fn, plan, qparams, args, tmp_path / "b", integer_io=True, targets=["c-aarch64"])
    (row,) = verify(bundle.path, ["c-aarch64"], run_code=True).rows
    assert row.status == "exact", row
