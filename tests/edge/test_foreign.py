"""ONNX and LiteRT files of somebody else, in bundles that are signed anew: what names code outside the runtime is not run."""

import shutil
from pathlib import Path

import flatbuffers
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from litert_converter import schema_py_generated as schema

import lowbit as lb
from lowbit.export.litert.write import MODEL
from lowbit.export.onnx.write import FILE
from lowbit.export.verify import verify
from tests.export.cases import normal, signed

TARGETS = ["onnxruntime", "openvino", "litert", "tflm"]


def dense(params, x):
    return jnp.maximum(x @ params["a"], 0.0) @ params["b"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    params, args = {"a": normal(0, 8, 16), "b": normal(1, 16, 4)}, (normal(2, 5, 8),)
    plan = lb.bind(dense, {"**": "w8,a8"}, params, *args, integer=True)
    qparams = lb.pack(plan, params, lb.init(dense, plan, params, *args))
    path = tmp_path_factory.mktemp("foreign") / "m"
    return lb.export(dense, plan, qparams, args, path, integer_io=True, targets=TARGETS)


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported.path, tmp_path / "b"))


def test_signed_again_they_run(folder):
    rows = verify(signed(folder, files=[FILE, MODEL]), TARGETS).rows
    assert [row.status for row in rows if row.is_failure] == []


def _domain(model):
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def _inner_domain(model):
    inner = onnx.helper.make_node("Evil", [], ["y"], domain="evil")
    body = onnx.helper.make_graph([inner], "g", [], [onnx.helper.make_tensor_value_info("y", 1, [])])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("body", body))


def _function(model):
    made = onnx.helper.make_function("", "Relu", ["x"], ["y"], [], [onnx.helper.make_opsetid("", 21)])
    model.functions.append(made)


def _outside(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def _sparse_outside(model):
    sparse = model.graph.sparse_initializer.add()
    sparse.values.name, sparse.values.data_location = "s", onnx.TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="/etc/passwd")


@pytest.mark.parametrize("change", [_domain, _inner_domain, _function, _outside, _sparse_outside])
def test_onnx(folder, change):
    model = onnx.load(folder / FILE)
    change(model)
    (folder / FILE).write_bytes(model.SerializeToString())
    for row in verify(signed(folder, files=[FILE]), ["onnxruntime", "openvino"]).rows:
        assert row.status == "failed"
        assert "which lowbit does not write: not run" in row.detail


def test_litert(folder):
    model = schema.ModelT.InitFromPackedBuf((folder / MODEL).read_bytes())
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"Evil"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    (folder / MODEL).write_bytes(bytes(builder.Output()))
    for row in verify(signed(folder, files=[MODEL]), ["litert", "tflm"]).rows:
        assert row.status == "failed"
        assert "it calls CUSTOM 'Evil', which lowbit does not write: not run" in row.detail


@pytest.mark.parametrize("name", [FILE, MODEL])
def test_files_of_noise(folder, name):
    """Cut, or damaged anywhere: a row that says so, or the right numbers, from a process of its own."""
    whole, draw = (folder / name).read_bytes(), np.random.default_rng(0)
    targets = ["onnxruntime"] if name == FILE else ["litert"]
    found = []
    for _ in range(8):
        data = bytearray(whole)
        data[draw.integers(len(data))] ^= 1 << draw.integers(8)
        (folder / name).write_bytes(data[: draw.integers(1, len(data))] if draw.random() < 0.3 else data)
        found.append(verify(signed(folder, files=[name]), targets).rows[0].status)
    assert set(found) <= {"failed", "differs", "exact", "close"}
    assert "failed" in found
