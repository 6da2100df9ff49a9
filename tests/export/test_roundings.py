"""Targets that round in their own way: judged by what another rounding of the same integers changes, and no more."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.export.verify import compared, verify

from . import cases

_DEPTH, _WIDTH = 10, 32


def _deep(params, x):
    """A residual network of dense layers with a gain above one: small differences grow."""
    for i in range(_DEPTH):
        x = x + jax.nn.relu(x @ params[f"w{i}"]) @ params[f"v{i}"]
    return x @ params["head"]


def _model():
    rng = np.random.default_rng(5)

    def weights(*shape):
        return jnp.asarray(rng.normal(size=shape) * 1.2 / np.sqrt(shape[0]), jnp.float32)

    params = {f"{name}{i}": weights(_WIDTH, _WIDTH) for i in range(_DEPTH) for name in "wv"}
    x = jnp.asarray(rng.normal(size=(2048, _WIDTH)), jnp.float32)
    return params | {"head": weights(_WIDTH, 10)}, x


@pytest.mark.parametrize("rounding", ["exact", pytest.param("gemmlowp_double", marks=pytest.mark.slow)])
def test_a_deep_network_is_close_where_rounding_moves_it_as_far(rounding):
    params, x = _model()
    plan = lb.bind(_deep, {"**": "w8,a8"}, params, x, integer=True, rounding=rounding)
    qstate = lb.init(_deep, plan, params, x)
    qparams = lb.pack(plan, params, qstate)
    folder = cases.folder(f"roundings-{rounding}")
    bundle = lb.export(_deep, plan, qparams, (x,), folder, integer_io=True, targets=["xla", "xla-universal"])
    found = bundle.manifest["roundings"]
    served, universal = verify(bundle.path, ["xla", "xla-universal"]).rows
    assert served.status == "exact"
    assert universal.status == "close"
    assert universal.difference is not None
    assert universal.difference > 1  # or nothing is shown
    assert universal.rounding == found["largest"][0]

    other = dataclasses.replace(plan, rounding=found["against"])
    values = [lb.execute(_deep, each)(qparams, x) for each in (plan, other)]
    steps = np.abs(np.subtract(*map(np.asarray, values))) / bundle.manifest["outputs"][0]["scale"]
    assert found["against"] != rounding
    assert steps.max() == pytest.approx(found["largest"][0], rel=1e-3)
    assert np.sqrt(np.mean(steps**2)) == pytest.approx(found["rms"][0], rel=1e-3)

    (entry,), (_, wanted) = bundle.manifest["outputs"], bundle.vectors()
    layers = (("v4", 1.05, "differs"), ("w0", 0.95, "differs"), ("head", 1.1, "differs"), ("head", 1.0, "exact"))
    for key, change, status in layers:  # one of twenty-one is off, or none
        wrong = lb.pack(plan, params | {key: params[key] * change}, qstate)
        codes = np.rint(np.asarray(lb.execute(_deep, plan)(wrong, x)) / entry["scale"]) + entry["zero_point"]
        assert compared(bundle.manifest, [codes.astype(np.int8)], wanted, steps=1)["status"] == status


@pytest.mark.parametrize(
    ("moved", "status"),
    [
        ([1, 1, 0, 0], "close"),  # within a step
        ([6, 0, 0, 0], "close"),  # as far as rounding goes
        ([9, 0, 0, 0], "differs"),  # further than twice that
        ([4, 4, 4, 4], "differs"),  # no further, but all of them
    ],
)
def test_both_the_largest_and_the_usual_difference_count(moved, status):
    manifest = {
        "outputs": [{"name": "y", "scale": 0.1}],
        "roundings": {"against": "exact", "largest": [4.0], "rms": [2.5]},
    }
    wanted = np.zeros(4, np.int8)
    assert compared(manifest, [np.array(moved, np.int8)], [wanted], steps=1)["status"] == status
    if max(moved) > 1:
        assert (
            compared(manifest | {"roundings": None}, [np.array(moved, np.int8)], [wanted], steps=1)["status"]
            == "differs"
        )
    assert compared(manifest, [np.array(moved, np.int8)], [wanted])["status"] == "differs"  # a target that is exact
