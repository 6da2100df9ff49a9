"""The bundle: widths, sizes, names, state in and out, checksums, refusals."""

import io
import json
import shutil
import zipfile

import jax
import numpy as np
import pytest

import lowbit as lb
from lowbit.export import bundle as bundles
from lowbit.export import stablehlo

from . import cases


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


def test_names_trees_and_state_are_kept(tmp_path):
    params = {"x": cases.normal(0, 16, 16), "h": cases.normal(1, 16, 16), "o": cases.normal(2, 16, 4)}
    args = ({"now": cases.normal(3, 2, 16)}, {"hidden": cases.normal(4, 2, 16)})
    plan, qparams = cases.packed(cases.recurrent, {"**": "w8,a8"}, params, *args)
    bundle = bundles.export(cases.recurrent, plan, qparams, args, tmp_path / "b")
    assert [entry["name"] for entry in bundle.manifest["inputs"]] == ["inputs/now", "state/hidden"]
    assert [entry["name"] for entry in bundle.manifest["outputs"]] == ["out", "state/hidden"]
    assert bundle.manifest["inexact_operations"] == ["tanh"]
    assert len(bundle.manifest["allowed"]) == 2
    assert all(limit > 0 for limit in bundle.manifest["allowed"])
    _, outputs = bundle.vectors()
    want = lb.execute(cases.recurrent, plan)(qparams, *args)
    for got, wanted in zip(outputs, jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_an_altered_bundle_is_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cases.mlp("w4,a8").bundle.path, copy)
    assert bundles.read(copy).manifest == cases.mlp("w4,a8").bundle.manifest
    data = bytearray((copy / "model.mlirbc").read_bytes())
    data[-1] ^= 1
    (copy / "model.mlirbc").write_bytes(data)
    with pytest.raises(ValueError, match=r"model.mlirbc is missing or was altered"):
        bundles.read(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        bundles.read(copy)
    with pytest.raises(ValueError, match="is not a bundle"):
        bundles.read(tmp_path)


def test_bad_requests(tmp_path):
    case = cases.mlp("w4,a8")
    ask = (case.fn, case.plan, case.qparams, case.args)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a bundle"):
        bundles.export(*ask, tmp_path / "full")
    for version in ("0.1.0", "9", "99.0.0"):
        with pytest.raises(ValueError, match="must be a StableHLO version from"):
            bundles.export(*ask, tmp_path / "b", version=version)
    two_bits = cases.mlp("w2,a8")
    with pytest.raises(ValueError, match=r"cannot be written for StableHLO 1.0.0"):
        bundles.export(two_bits.fn, two_bits.plan, two_bits.qparams, two_bits.args, tmp_path / "b", version="1.0.0")
    with pytest.raises(ValueError, match="unknown target 'abacus'"):
        bundles.export(*ask, tmp_path / "b", targets=["abacus"])
    with pytest.raises(ValueError, match="name must be an identifier"):
        bundles.export(*ask, tmp_path / "b", name="two words")
    assert not (tmp_path / "b").exists()
