"""The bundle: widths, sizes, names, state in and out, checksums, refusals."""

import io
import json
import shutil
import zipfile

import jax
import numpy as np
import pytest

import lowbit as lb
from lowbit.export import iree, reading, stablehlo, verify

from . import cases
from .graphs import Layer, Network


@pytest.mark.parametrize(
    ("rule", "element", "stored"), [("w2,a8", "i2", 2), ("w3,a8", "i4", 4), ("w4,a8", "i4", 4), ("w8,a8", "i8", 8)]
)
def test_weights_are_integers_of_their_width(rule, element, stored):
    bundle = cases.mlp(rule).bundle
    text = (bundle.path / "model.mlir").read_text()
    assert f"tensor<64x48x{element}>" in text
    assert "tensor<64x48xf32>" not in text
    assert [w["stored_bits"] for w in bundle.manifest["weights"]] == [stored, stored]
    assert bundle.manifest["constant_bytes"] < (64 * 48 + 480) * stored / 8 + 1500  # scales, zero-point sums, the bias


def test_the_stored_artifact_is_deflated():
    bundle = cases.mlp("w4,a8").bundle
    archive = zipfile.ZipFile(io.BytesIO((bundle.path / "model.zip").read_bytes()))
    assert archive.read("model.mlirbc") == bundle.artifact
    assert bundle.stored_bytes < 0.8 * len(bundle.artifact)
    assert stablehlo.text_of(bundle.artifact).count("dot_general") == 2


def test_the_manifest_describes_every_site():
    case = cases.mlp("w4,a8")
    sites = case.bundle.manifest["sites"]
    assert [(s["path"], s["role"], s["bits"]) for s in sites] == [
        ("a", "input", 8),
        ("a", "weight", 4),
        ("b", "input", 8),
        ("b", "weight", 4),
    ]
    weight = case.qparams.weights()["a"]
    assert sites[1]["scale"] == np.asarray(weight.scale_values).ravel().tolist()
    assert all(isinstance(s["scale"], float) and s["rounding"] == "nearest_even" for s in sites[::2])
    assert set(case.bundle.manifest["targets"]) == {"xla", "iree"}
    assert len(case.bundle.manifest["files"]["model.mlirbc"]["sha256"]) == 64


def test_the_manifest_of_a_full_integer_plan_has_every_grid(tmp_path):
    params, args = (
        {"a": cases.normal(0, 8, 6), "b": cases.normal(1, 6, 4), "c": cases.normal(2, 6)},
        (cases.normal(3, 5, 8),),
    )
    plan = lb.bind(cases.two_layers, {"**": "w8,a8"}, params, *args, integer=True, rounding="tflite_single")
    qparams = lb.pack(plan, params, lb.init(cases.two_layers, plan, params, *args))
    manifest = lb.export(cases.two_layers, plan, qparams, args, tmp_path / "b", integer_io=True).manifest
    assert set(manifest["grids"]) == {step.path for step in plan.steps if step.site is not None}
    given = manifest["grids"]["input_0"]
    assert (given["scale"], given["zero"]) == (manifest["inputs"][0]["scale"], manifest["inputs"][0]["zero_point"])
    assert manifest["grids"]["b"]["scale"] == manifest["outputs"][0]["scale"]
    assert [(s["role"], s["rounding"]) for s in manifest["sites"]] == [
        ("input", "tflite_single"),
        ("weight", "nearest_even"),
    ] * 2
    assert manifest["sites"][0]["scale"] == given["scale"]


def test_names_trees_and_state_are_kept(tmp_path):
    params = {"x": cases.normal(0, 16, 16), "h": cases.normal(1, 16, 16), "o": cases.normal(2, 16, 4)}
    args = ({"now": cases.normal(3, 2, 16)}, {"hidden": cases.normal(4, 2, 16)})
    plan, qparams = cases.packed(cases.recurrent, {"**": "w8,a8"}, params, *args)
    bundle = lb.export(cases.recurrent, plan, qparams, args, tmp_path / "b")
    assert [entry["name"] for entry in bundle.manifest["inputs"]] == ["inputs/now", "state/hidden"]
    assert [entry["name"] for entry in bundle.manifest["outputs"]] == ["out", "state/hidden"]
    assert bundle.manifest["inexact_operations"] == ["tanh"]
    assert len(bundle.manifest["allowed"]) == 2
    assert all(limit > 0 for limit in bundle.manifest["allowed"])
    _, outputs = bundle.vectors()
    want = lb.execute(cases.recurrent, plan)(qparams, *args)
    for got, wanted in zip(outputs, jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_an_open_batch(tmp_path):
    """One module for every batch size, the same bits; what cannot be left open is refused by name."""
    case = cases.mlp("w4,a8")
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 64), np.float32)
    ask = (case.fn, case.plan, case.qparams, (shape,))
    bundle = lb.export(*ask, tmp_path / "open")
    assert bundle.manifest["inputs"] == [{"name": "x", "shape": ["batch", 64], "dtype": "float32"}]
    assert [row.status for row in verify.verify(bundle.path).rows] == ["exact", "exact", "exact"]
    compiled = iree.compile_artifact(bundle.artifact)
    for n in (1, 7):
        x = np.asarray(cases.normal(n, n, 64))
        want = lb.execute(case.fn, case.plan)(case.qparams, x)
        np.testing.assert_array_equal(iree.run(compiled, [x])[0], want)

    params = {"a": cases.normal(0, 64, 48)}
    fn = lambda p, x: x.reshape(x.shape[0], -1) @ p["a"]  # noqa: E731
    x = cases.normal(0, 2, 8, 8)
    plan, qparams = cases.packed(fn, {"**": "w8,a8"}, params, x)
    flat = jax.ShapeDtypeStruct((batch, 8, 8), np.float32)
    with pytest.raises(ValueError, match="iree-vmvx cannot take it"):
        lb.export(fn, plan, qparams, (flat,), tmp_path / "b", targets=["iree-vmvx"])
    with pytest.raises(ValueError, match="iree cannot reshape"):
        lb.export(fn, plan, qparams, (flat,), tmp_path / "b")
    assert lb.export(fn, plan, qparams, (flat,), tmp_path / "b", targets=["xla"])
    plan, qparams = cases.packed(fn, {"**": "w8,a8/dynamic"}, params, x)
    with pytest.raises(ValueError, match="computes its input's scale at run time"):
        lb.export(fn, plan, qparams, (flat,), tmp_path / "b", targets=["xla"])


def test_an_altered_bundle_is_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cases.mlp("w4,a8").bundle.path, copy)
    assert reading.read_bundle(copy).manifest == cases.mlp("w4,a8").bundle.manifest
    data = bytearray((copy / "model.mlirbc").read_bytes())
    data[-1] ^= 1
    (copy / "model.mlirbc").write_bytes(data)
    with pytest.raises(ValueError, match=r"model.mlirbc is missing or was altered"):
        reading.read_bundle(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        reading.read_bundle(copy)
    with pytest.raises(ValueError, match="is not a bundle"):
        reading.read_bundle(tmp_path)


def test_bad_requests(tmp_path):
    case = cases.mlp("w4,a8")
    ask = (case.fn, case.plan, case.qparams, case.args)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a bundle"):
        lb.export(*ask, tmp_path / "full")
    for version in ("0.1.0", "9", "99.0.0"):
        with pytest.raises(ValueError, match="must be a StableHLO version from"):
            lb.export(*ask, tmp_path / "b", version=version)
    two_bits = cases.mlp("w2,a8")
    with pytest.raises(ValueError, match=r"cannot be written for StableHLO 1.0.0"):
        lb.export(two_bits.fn, two_bits.plan, two_bits.qparams, two_bits.args, tmp_path / "b", version="1.0.0")
    with pytest.raises(ValueError, match="unknown target 'abacus'"):
        lb.export(*ask, tmp_path / "b", targets=["abacus"])
    with pytest.raises(ValueError, match="name must be an identifier"):
        lb.export(*ask, tmp_path / "b", name="two words")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("integer", [False, True])
def test_a_window_of_one_step_compiles(integer, tmp_path):
    """IREE 3.13 rejects a stride along an axis that has one window and a rest: the export writes it without."""
    pool = Layer("max", 5, (2, 2), (1, 2), "VALID")
    graph = Network(
        (2, 6, 5, 4), (Layer("conv", 5, (3, 3), (2, 2)), pool, Layer("conv", 3, (2, 1), (2, 1), "VALID")), 3
    )
    params, x = graph.params(0), cases.normal(0, *graph.shape)
    plan = lb.bind(graph, {"**": "w8,a8"}, params, x, integer=integer)
    qparams = lb.pack(plan, params, lb.init(graph, plan, params, x))
    bundle = lb.export(graph, plan, qparams, (x,), tmp_path / "b", integer_io=integer)
    rows = {row.target: row.status for row in verify.verify(bundle.path).rows}
    assert rows["xla"] == rows["iree"] == "exact"
