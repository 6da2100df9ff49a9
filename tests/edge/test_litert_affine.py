"""Factors and addends along some axes, in LiteRT: one integer kernel, the served codes."""

import jax
import jax.numpy as jnp
import pytest

import lowbit as lb
from lowbit.export.litert.audit import Contents
from lowbit.export.litert.write import CONTENTS
from lowbit.export.verify import verify
from tests.values import normal

MEAN, DEVIATION = normal(0, 3) / 4, 1 + 0.2 * normal(1, 3)
P = {
    "kernel": normal(2, 3, 3, 3, 8) / 5,
    "w": normal(3, 3, 8) / 2,
    "square": normal(4, 8, 8) / 3,
    "mean": MEAN,
    "deviation": DEVIATION,
    "places": normal(5, 6, 8),
    "rows": 1 + 0.3 * normal(6, 6, 1),
    "gain": normal(7, 8).at[2].set(0.0),
}


def _conv(p, x, numbers=("NHWC", "HWIO", "NHWC")):
    return jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=numbers)


def _image(p, x):
    return _conv(p, (x - MEAN) / DEVIATION)


def _of_parameters(p, x):
    return _conv(p, (x - p["mean"]) / p["deviation"])


def _channels_first(p, x):
    y = (x - MEAN[:, None, None]) / DEVIATION[:, None, None]
    return _conv(p, y, ("NCHW", "HWIO", "NCHW"))


def _features(p, x):
    return (x - MEAN) / DEVIATION @ p["w"]


def _places(p, x):
    return (x @ p["w"] + p["places"]) @ p["square"]


def _rows(p, x):
    return (x @ p["w"] * p["rows"]) @ p["square"]


def _clipped(p, x):
    y = x @ p["w"]
    return jax.nn.relu(y * p["gain"] - 0.5) @ p["square"] + jnp.minimum(y * -p["gain"], 1.0)


IMAGE, SIGNAL = normal(8, 2, 6, 6, 3), normal(9, 4, 6, 3)
CASES = {
    "image": (_image, IMAGE),
    "parameters": (_of_parameters, IMAGE),
    "channels first": (_channels_first, jnp.moveaxis(IMAGE, 3, 1)),
    "features": (_features, SIGNAL[:, 0]),
    "places": (_places, SIGNAL),
    "rows": (_rows, SIGNAL),
    "clipped": (_clipped, SIGNAL),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("target", "rounding"), [("litert", "exact"), ("tflm", "gemmlowp_double")])
def test_an_affine_step_is_an_integer_kernel(name, target, rounding, tmp_path):
    fn, x = CASES[name]
    plan = lb.bind(fn, {"**": "w8,a8"}, P, x, integer=True, rounding=rounding)
    assert "affine" in [step.kind for step in plan.steps]
    qparams = lb.pack(plan, P, lb.init(fn, plan, P, x))
    bundle = lb.export(fn, plan, qparams, (x,), tmp_path / "m", integer_io=True, targets=[target])
    operators = Contents.of((bundle.path / CONTENTS).read_text()).operators
    assert [op.name for op in operators if op.is_float] == []
    assert sum(op.name == "DEPTHWISE_CONV_2D" for op in operators) == [s.kind for s in plan.steps].count("affine")
    (row,) = verify(bundle.path, [target]).rows
    assert row.status in ("exact", "close"), row
    assert row.difference <= 1.0
    assert row.share <= 0.02
