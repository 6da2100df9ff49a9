"""IREE as 64-bit Arm, under an emulator: the served bits. Fails where a wheel, a library or the emulator is missing."""

import jax
import numpy as np
import pytest

import lowbit as lb
from lowbit.export import iree
from lowbit.export.verify import verify
from tests.export import cases

from .models import digits_cnn, packed


@pytest.mark.parametrize(("rule", "bits"), [("w8,a8", 8), ("w4,a8", 4)])
def test_the_cnn_is_exact(rule, bits, tmp_path):
    """Its int8 convolution of 32 to 64 channels is one that comes out wrong where +i8mm is asked for."""
    model = digits_cnn(8)
    plan, qparams = packed(model, {"**": rule}, integer=True)
    targets = ["iree-aarch64", "iree-aarch64-universal"]
    bundle = lb.export(model.fn, plan, qparams, model.args, tmp_path / "m", targets=targets, integer_io=True)
    served, universal = verify(bundle.path, targets).rows
    assert served.status == "exact", served
    assert universal.status in ("exact", "close"), universal
    weights = sum(int(np.prod(weight["shape"])) for weight in bundle.manifest["weights"])
    for row in (served, universal):
        assert row.bytes is not None
        assert row.bytes < weights * bits / 8 + 40 * 1024


def test_several_inputs_and_results_and_an_open_batch(tmp_path):
    params = {"x": cases.normal(0, 16, 64), "h": cases.normal(1, 64, 64), "o": cases.normal(2, 64, 5)}
    args = {"now": cases.normal(3, 2, 16)}, {"hidden": cases.normal(4, 2, 64)}
    plan, qparams = cases.packed(cases.recurrent, {"**": "w8,a8"}, params, *args)
    bundle = lb.export(cases.recurrent, plan, qparams, args, tmp_path / "m", targets=["iree-aarch64"])
    assert (len(bundle.manifest["inputs"]), len(bundle.manifest["outputs"])) == (2, 2)
    (row,) = verify(bundle.path, ["iree-aarch64"]).rows
    assert row.status in ("exact", "close"), row  # tanh

    case = cases.mlp("w4,a8")
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 64), np.float32)
    bundle = lb.export(case.fn, case.plan, case.qparams, (shape,), tmp_path / "n", targets=["iree-aarch64"])
    assert verify(bundle.path, ["iree-aarch64"]).rows[0].status == "exact"


def test_an_unknown_machine_is_named():
    with pytest.raises(ValueError, match="machine must be one of host, aarch64, got 'z80'"):
        iree.compile_artifact(b"", machine="z80")
