"""Readers of pretrained networks, without the packages that carry them: their formats, written here by hand."""

import struct

import numpy as np
import pytest

from experiments.data import photographs
from experiments.models.mlperf_tiny import Layer, Network, _read
from experiments.models.torch_file import read_tensors


# ---- the pickles of torch.save, instruction by instruction ---------------------------------------------------------
def text(word):
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def whole(*numbers):
    return b"(" + b"".join(map(number, numbers)) + b"t"


def name(module, word):
    return f"c{module}\n{word}\n".encode()


def tensor(key, count, offset, shape, strides):
    storage = (
        b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + number(count) + b"Nt" + b"Q"
    )
    given = (
        b"(" + storage + number(offset) + whole(*shape) + whole(*strides) + b"\x89" + name("collections", "OrderedDict")
    )
    return name("torch._utils", "_rebuild_tensor_v2") + given + b")R" + b"t" + b"R"


def entries(**items):
    return b"}q\x00(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def written(path, content, storages, first=0x1950A86A20F9469CFC6C):
    magic = first.to_bytes(10, "little")
    pickles = (b"\x8a" + bytes([len(magic)]) + magic, number(1001), entries(little_endian=b"\x88"), content)
    keys = b"](" + b"".join(text(key) for key in storages) + b"e"
    head = b"".join(b"\x80\x02" + each + b"." for each in (*pickles, keys))
    bodies = (struct.pack("<q", len(x)) + np.float32(x).tobytes() for x in storages.values())
    path.write_bytes(head + b"".join(bodies))
    return path


def test_a_state_dictionary_is_read_without_torch(tmp_path):
    values = np.arange(12, dtype=np.float32)
    content = entries(w=tensor("a", 12, 2, (2, 3), (1, 4)), b=tensor("b", 4, 0, (4,), (1,)))
    found = read_tensors(written(tmp_path / "w.pth", content, {"b": values[:4] * 10, "a": values}))
    np.testing.assert_array_equal(found["w"], [[2, 6, 10], [3, 7, 11]])  # strides as they are, offset 2
    np.testing.assert_array_equal(found["b"], [0, 10, 20, 30])


def test_a_file_that_calls_something_is_refused_and_calls_nothing(tmp_path):
    evil = entries(w=name("builtins", "print") + b"(" + text("called") + b"t" + b"R")
    with pytest.raises(ValueError, match=r"wants to call builtins print"):
        read_tensors(written(tmp_path / "evil.pth", evil, {}))
    with pytest.raises(ValueError, match=r"no \.pth file"):
        read_tensors(written(tmp_path / "other.pth", entries(), {}, first=7))


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
