"""`verify`: exact is exact, a difference and an inflated file fail, what is not run says why."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

import lowbit as lb
from lowbit import cli
from lowbit.export import installed, iree, stablehlo, verify
from lowbit.export.manifest import encoded
from lowbit.export.runners import Ran, runners
from lowbit.export.storage import Stored, stored_width, widened
from lowbit.packed.files import decode_tensors, encode_tensors
from lowbit.targets.table import TARGETS

from . import cases


def test_an_integer_model_is_exact_everywhere():
    case = cases.mlp("w4,a8")
    certificate = verify.verify(case.bundle.path)
    assert [(row.target, row.status) for row in certificate.rows] == [
        ("xla", "exact"),
        ("interpreter", "exact"),
        ("iree", "exact"),
    ]
    compiled = certificate.rows[2]
    assert compiled.bytes is not None
    assert 0 < compiled.bytes <= verify.size_limit(case.bundle.manifest)
    assert certificate.is_passed


def test_a_convolution_that_wraps_is_not_run():
    """The interpreter of jax 0.10 is wrong, that of jax 0.12 right: `verify` knows which one this is."""
    case = cases.cnn()
    rows = verify.verify(case.bundle.path, ["interpreter", "xla"]).rows
    inputs, outputs = case.bundle.vectors()
    got = stablehlo.run_in_interpreter((case.bundle.path / "model.mlir").read_text(), inputs)
    if np.array_equal(got[0], outputs[0]):
        assert rows[0].status == "exact"
    else:
        assert rows[0].status == "not run"
        assert "wraps to 8 bits" in rows[0].detail
    assert rows[1].status == "exact"


def _with_vectors(case, folder, change):
    """A copy of the bundle with other expected outputs, checksums in order."""
    shutil.copytree(case.bundle.path, folder)
    path = folder / "vectors.safetensors"
    found = dict(decode_tensors(path.read_bytes()))
    found["output0"] = change(np.array(found["output0"]))
    data = b"".join(encode_tensors(found, {"format": "lowbit-bundle"}))
    path.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["vectors.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_bytes(encoded(manifest)[1])
    return folder


def test_one_last_bit_fails(tmp_path, capsys):
    def change(y):
        y[0, 0] = np.nextafter(y[0, 0], np.float32(np.inf))
        return y

    folder = _with_vectors(cases.mlp("w4,a8"), tmp_path / "b", change)
    assert cli.main(["verify", str(folder), "--target", "xla", "--json"]) == 1
    assert "differs" in capsys.readouterr().out
    written = json.loads((folder / "certificate.json").read_text())
    assert written["passed"] is False
    assert written["rows"][0]["share"] == 1 / 40
    shutil.rmtree(folder)
    shutil.copytree(cases.mlp("w4,a8").bundle.path, folder)
    assert cli.main(["verify", str(folder), "--target", "xla"]) == 0
    assert "exact" in capsys.readouterr().out


def test_wrong_requests(capsys, tmp_path):
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert cli.main(["verify", str(cases.mlp("w4,a8").bundle.path), "--target", "abacus"]) == 2
    assert "unknown target 'abacus'" in capsys.readouterr().err
    assert cli.main(["verify", str(cases.mlp("w4,a8").bundle.path), "--target", "vela"]) == 2
    assert "takes the litert form" in capsys.readouterr().err


def test_an_inflated_file_fails(monkeypatch):
    bundle = cases.mlp("w4,a8").bundle
    limit = verify.size_limit(bundle.manifest)
    outputs = bundle.vectors()[1]
    for size, status in ((limit, "exact"), (limit + 1, "inflated")):
        ran = Ran(outputs, size)
        monkeypatch.setitem(runners(), "iree", lambda bundle, inputs, ran=ran: ran)
        (row,) = verify.verify(bundle.path, ["iree"]).rows
        assert row.status == status
        assert row.is_failure == (status == "inflated")


def test_inflated_constants_fail_whatever_the_code_takes(monkeypatch, tmp_path):
    params, x = {"w": cases.normal(0, 256, 256)}, cases.normal(1, 4, 256)
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    plan = lb.bind(fn, {"**": "w4,a8"}, params, x)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    bundle = lb.export(fn, plan, qparams, (x,), tmp_path / "m")
    limit = verify.size_limit(bundle.manifest, has_code=False)
    found = iree.constant_bytes(iree.compile_artifact(bundle.artifact))
    assert found is not None
    assert 256 * 256 // 2 <= found <= limit < 256 * 256  # the weight in 8 bits would be seen
    assert iree.constant_bytes(b"no archive") is None
    assert iree.constant_bytes(iree.compile_artifact(cases.mlp("w4,a8").bundle.artifact)) is None  # with the code
    for constants, status in ((limit, "exact"), (limit + 1, "inflated")):
        ran = Ran(bundle.vectors()[1], 1 << 20, constants=constants)
        monkeypatch.setitem(runners(), "iree", lambda bundle, inputs, ran=ran: ran)
        assert verify.verify(bundle.path, ["iree"]).rows[0].status == status


@pytest.mark.parametrize(
    ("rule", "columns"), [("w2,a8", 22), ("w4,a8", 9), ("w2,a8", 24), ("w4,a8", 97), ("w2,a8", 97)]
)
def test_rows_that_end_within_a_byte(rule, columns, tmp_path):
    """IREE reads such weights wrong where loops are peeled, 186 steps off, and rejects most with masks: the served form has bytes.

    The universal form must keep its typed constants, for whoever knows its composites.
    """
    params, x = {"w": cases.normal(0, 512, columns)}, cases.normal(1, 4, 512)
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    plan = lb.bind(fn, {"**": rule}, params, x, integer=True)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    bundle = lb.export(fn, plan, qparams, (x,), tmp_path / "m", targets=["iree", "iree-universal"], integer_io=True)
    assert not stablehlo.has_ragged_rows(bundle.artifact)
    assert stablehlo.has_ragged_rows((bundle.path / "universal/model.mlir").read_text()) == (columns != 24)
    served, universal = verify.verify(bundle.path, ["iree", "iree-universal"]).rows
    assert served.status == "exact"
    assert bundle.manifest["constant_bytes"] <= 512 * columns * int(rule[1]) / 8 + 20 * columns + 600  # biases, factors
    assert universal.status in ("exact", "failed"), universal
    assert universal.status == "exact" or "IREE rejects this module" in universal.detail


def test_a_missing_tool_is_not_run(monkeypatch):
    target = dataclasses.replace(TARGETS["iree"], modules=("no_such_tool.part",))
    monkeypatch.setattr(verify, "lookup", lambda names: (target,))
    certificate = verify.verify(cases.mlp("w4,a8").bundle.path, ["iree"])
    assert certificate.rows[0].status == "not run"
    assert "pip install" in certificate.rows[0].detail
    assert not certificate.is_passed


def test_a_tool_of_another_machine_is_looked_for_where_it_is_kept(monkeypatch, tmp_path):
    target = dataclasses.replace(TARGETS["iree-aarch64"], modules=(), programs=())
    monkeypatch.setenv("LOWBIT_TOOLS", str(tmp_path))
    (name,) = target.files
    assert installed.missing(target) == str(tmp_path / name)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert installed.missing(target) == ""
    monkeypatch.delenv("LOWBIT_TOOLS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert installed.missing(target) == str(tmp_path / "cache" / "lowbit" / "tools" / name)


def test_inexact_operations_have_a_measured_limit():
    wanted = np.array([1.0, np.nan, np.inf], np.float32)
    manifest = {"outputs": [{"name": "y"}], "allowed": [0.25]}
    for got, status in ((1.0, "exact"), (1.25, "close"), (1.5, "differs"), (np.nan, "differs")):
        result = verify.compared(manifest, [np.array([got, np.nan, np.inf], np.float32)], [wanted])
        assert result["status"] == status
    assert verify.compared(manifest, [], [wanted])["status"] == "differs"
    codes = {"outputs": [{"name": "y", "scale": 0.5}]}
    result = verify.compared(codes, [np.array([3], np.int8)], [np.array([5], np.int8)])
    assert (result["difference"], result["unit"], result["status"]) == (2.0, "steps", "differs")


STORED = {
    "as they are": ([Stored(3072, 3072 * 4), Stored(480, 480 * 4)], ""),
    "a last byte is filled": ([Stored(3072, 3072 * 4 + 7), Stored(480, 480 * 4)], ""),
    "a small one in bytes": ([Stored(3072, 3072 * 4), Stored(480, 480 * 8)], ""),
    "one that was computed away": ([Stored(3072, 3072 * 4)], ""),
    "other constants": ([Stored(3072, 3072 * 4), Stored(480, 480 * 4), Stored(48, 48 * 8)], ""),
    "a large one in bytes": (
        [Stored(3072, 3072 * 8), Stored(480, 480 * 4)],
        "at least 2,592 weights take more than the 4 bits",
    ),
    "stored twice": (
        [Stored(3072, 3072 * 8), Stored(480, 480 * 8)],
        "at least 3,072 weights take more than the 4 bits",
    ),
}


@pytest.mark.parametrize("what", STORED)
def test_a_widened_weight_fails(what, monkeypatch):
    """4-bit weights of 3,072 and 480 elements, as a runner may find them; the smaller one takes 240 bytes."""
    bundle = cases.mlp("w4,a8").bundle
    stored, said = STORED[what]
    ran = Ran(bundle.vectors()[1], 2000, stored)
    monkeypatch.setitem(runners(), "iree", lambda bundle, inputs: ran)
    (row,) = verify.verify(bundle.path, ["iree"]).rows
    assert row.status == ("inflated" if said else "exact")
    assert said in row.detail
    assert row.bits_per_weight == sum(bits for _, bits in stored) / sum(n for n, _ in stored)


def test_the_widths_of_a_target_are_data():
    three = {"shape": [64, 64], "bits": 3, "has_zero_points": False}
    found = {width: [Stored(4096, 4096 * width)] for width in (2, 4, 8)}
    for entry, widths, allowed in (
        (three, (2, 4, 8), 4),
        (three, (8,), 8),
        (three | {"bits": 4}, (4, 8), 4),
        (three | {"bits": 4, "has_zero_points": True}, (4, 8), 8),
        (three | {"bits": 2}, (4, 8), 4),
    ):
        entry = entry | {"stored_bits": stored_width(entry["bits"])}
        target = dataclasses.replace(TARGETS["c"], widths=widths)
        for width, stored in found.items():
            assert bool(widened({"weights": [entry]}, target, stored)) == (width > allowed)
