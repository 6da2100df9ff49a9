"""Readers of pretrained networks, without the packages that carry them: their formats, written here by hand."""

import io
import pickle  # noqa: TID251  # written by the test, read by nothing here
import sys
import types

import numpy as np
import pytest

from experiments.data import photographs
from experiments.models.mlperf_tiny import Layer, Network, _read
from experiments.models.torch_file import read_tensors


class _Storage:
    """What stands for a storage in a pickle: it is written as an identity."""

    def __init__(self, key, values):
        self.key, self.values = key, values


@pytest.fixture
def torch_like(monkeypatch):
    """Modules of torch's names, so that pickle writes the references that torch writes."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_):
        return None

    class FloatStorage:
        pass

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"
    monkeypatch.setattr(utils, "_rebuild_tensor_v2", _rebuild_tensor_v2, raising=False)
    monkeypatch.setattr(torch, "FloatStorage", FloatStorage, raising=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Tensor:
        def __init__(self, storage, offset, shape, strides):
            self.given = storage, offset, shape, strides

        def __reduce__(self):
            storage, offset, shape, strides = self.given
            return _rebuild_tensor_v2, (storage, offset, shape, strides, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, _Storage):
                return "storage", FloatStorage, obj.key, "cpu", len(obj.values), None
            return None

    def written(path, entries, storages, first=0x1950A86A20F9469CFC6C):
        buffer = io.BytesIO()
        for content in (first, 1001, {"little_endian": True}, entries, [s.key for s in storages]):
            Pickler(buffer, protocol=2).dump(content)
        for storage in storages:
            buffer.write(np.int64(len(storage.values)).tobytes() + storage.values.tobytes())
        path.write_bytes(buffer.getvalue())
        return path

    return Tensor, written


def test_a_state_dictionary_is_read_without_torch(tmp_path, torch_like):
    tensor, written = torch_like
    values = np.arange(12, dtype=np.float32)
    one, other = _Storage("a", values), _Storage("b", values * 10)
    entries = {"w": tensor(one, 2, (2, 3), (1, 4)), "b": tensor(other, 0, (4,), (1,))}
    found = read_tensors(written(tmp_path / "w.pth", entries, [other, one]))
    np.testing.assert_array_equal(found["w"], [[2, 6, 10], [3, 7, 11]])  # strides as they are, offset 2
    np.testing.assert_array_equal(found["b"], [0, 10, 20, 30])


def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path, torch_like):
    _, written = torch_like

    class Evil:
        def __reduce__(self):
            return print, ("called",)

    with pytest.raises(ValueError, match=r"wants to call .*print"):
        read_tensors(written(tmp_path / "evil.pth", {"w": Evil()}, []))
    with pytest.raises(ValueError, match=r"no \.pth file"):
        read_tensors(written(tmp_path / "other.pth", {}, [], first=7))


def test_scored_photographs_are_seen_by_no_calibration():
    parts = {part: photographs.crops(part) for part in ("scored", "calibration", "agreement")}
    assert {part: len(each) for part, each in parts.items()} == {"scored": 200, "calibration": 256, "agreement": 500}
    files = {part: {crop.file for crop in each} for part, each in parts.items()}
    assert len(files["scored"]) == 20
    assert not files["scored"] & (files["calibration"] | files["agreement"])
    assert not files["calibration"] & files["agreement"]
    assert all(0 <= crop.label < 1000 for crop in parts["scored"])
    assert {crop.label for part in ("calibration", "agreement") for crop in parts[part]} == {-1}
    counts = np.bincount(photographs.photograph_of("scored"))
    assert counts.tolist() == [10] * 20  # what a bootstrap by photograph draws


def test_a_keras_graph_computes_what_its_layers_say():
    layers = (
        Layer("InputLayer", "x", ()),
        Layer("DepthwiseConv2D", "d", ("x",), (2, 2), "SAME"),
        Layer("BatchNormalization", "n", ("d",), epsilon=0.5),
        Layer("Activation", "r", ("n",)),
        Layer("AveragePooling2D", "p", ("r",), (2, 2), "VALID"),
        Layer("Flatten", "f", ("p",)),
        Layer("Dense", "y", ("f",)),
    )
    rng = np.random.default_rng(0)
    x, k, w = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(1, 1, 1, 3)), rng.normal(size=(3, 5))
    b, gamma, beta, mean = (rng.normal(size=3) for _ in range(4))
    variance, bias = rng.uniform(1, 2, size=3), rng.normal(size=5)
    params = {
        "d": {"kernel": k, "bias": b}, "n": {"gamma": gamma, "beta": beta}, "y": {"kernel": w, "bias": bias},
    }  # fmt: skip
    f32 = {k: {n: np.float32(v) for n, v in each.items()} for k, each in params.items()}
    state = {"n": {"mean": np.float32(mean), "variance": np.float32(variance)}}
    got = Network(layers)(f32, state, np.float32(x))
    taken = x[:, ::2, ::2] * k[0, 0, 0] + b
    normed = (taken - mean) / np.sqrt(variance + 0.5) * gamma + beta
    np.testing.assert_allclose(got, np.maximum(normed, 0).mean(axis=(1, 2)) @ w + bias, rtol=2e-5, atol=2e-5)


def test_layers_are_read_from_kerass_description():
    described = {
        "class_name": "Conv2D",
        "config": {"name": "c", "strides": [2, 1], "padding": "same"},
        "inbound_nodes": [[["a", 0, 0, {}]]],
    }
    assert _read(described) == Layer("Conv2D", "c", ("a",), (2, 1), "SAME")
