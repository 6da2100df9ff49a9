"""Models in ONNX Runtime, against `lowbit.execute`: differences, what is fused, sizes.

Needs onnx and onnxruntime: fails without them.
"""

import collections

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit as lb
from lowbit.export import forms
from lowbit.export.onnx.run import session
from lowbit.export.onnx.write import FILE
from lowbit.export.universal import universal_jaxpr
from lowbit.export.verify import verify
from tests.export.graphs import dense_graphs, image_graphs
from tests.export.test_fuzz import FUZZ


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_t(4.0, shape).astype(np.float32)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3), (2, 2))(x)).reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(256)(x)))


class Residual(nn.Module):
    """Inverted bottlenecks, depthwise, relu6, pools."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(nn.Conv(16, (3, 3), (2, 2))(x))
        for _ in range(2):
            y = nn.relu6(nn.Conv(32, (1, 1))(x))
            y = nn.relu6(nn.Conv(32, (3, 3), feature_group_count=32)(y))
            x = x + nn.Conv(16, (1, 1))(y)
        return nn.Dense(10)(jnp.mean(nn.max_pool(x, (2, 2), (2, 2)), (1, 2)))


class Detector(nn.Module):
    """Scores at every place of two scales, in one row."""

    @nn.compact
    def __call__(self, x):
        fine = nn.relu(nn.Conv(16, (3, 3), (2, 2))(x))
        coarse = nn.relu(nn.Conv(16, (3, 3), (2, 2))(fine) + nn.max_pool(fine, (2, 2), (2, 2)))
        scores = [nn.Conv(2, (1, 1))(y).reshape(len(x), -1, 1) for y in (fine, coarse)]
        return jnp.concatenate(scores, 1)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        return x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


class Language(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(50)(Block()(nn.Embed(50, 32)(tokens)))


DATA = {
    CNN: normal(10, 64, 8, 8, 1),
    Residual: normal(11, 8, 32, 32, 3),
    Detector: normal(14, 1, 32, 32, 3),
    Block: normal(12, 2, 16, 32),
    Language: np.random.default_rng(13).integers(0, 50, (2, 16), np.int32),
}


def exported(kind, rules, folder, **options):
    x = jnp.asarray(DATA[kind])
    variables = kind().init(jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(variables)  # no bias is zero
    leaves = [leaf + 0.02 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)]
    fn, params, state = lb.linen(kind(), jax.tree.unflatten(tree, leaves))
    integer = options.pop("integer", False)
    plan = lb.bind(fn, rules, params, state, x, integer=integer)
    qparams = lb.pack(plan, params, lb.calibrate(fn, plan, params, [(state, x)]))
    return lb.export(fn, plan, qparams, (state, x), folder, targets=["onnxruntime"], **options)


def checked(bundle):
    """The row of the certificate, and how often every operator is in the graph that ONNX Runtime runs."""
    (row,) = verify(bundle.path, ["onnxruntime"]).rows
    session(bundle.path / FILE, optimized=bundle.path / "optimized.onnx")
    nodes = onnx.load(str(bundle.path / "optimized.onnx")).graph.node
    return row, collections.Counter(node.op_type for node in nodes)


@pytest.mark.parametrize(("rule", "bits"), [("w8,a8", 8), ("w4,a8", 4)])
@pytest.mark.parametrize("has_codes", [False, True])
def test_a_full_integer_cnn_is_a_step_off_at_most(rule, bits, has_codes, tmp_path):
    bundle = exported(CNN, {"**": rule}, tmp_path / "m", integer=True, integer_io=has_codes)
    row, operators = checked(bundle)
    assert row.status in ("exact", "close"), row
    assert row.share < 0.01  # measured: 0.003; biases and quotients that fall between two codes
    assert (operators["QLinearConv"], operators["QGemm"], operators["Conv"], operators["Gemm"]) == (2, 2, 0, 0)
    weights = sum(int(np.prod(w["shape"])) for w in bundle.manifest["weights"])
    assert row.bits_per_weight == bits
    assert row.bytes <= weights * bits / 8 + 16 * 1024


def test_what_is_on_one_grid_is_joined_as_codes(tmp_path):
    bundle = exported(Detector, {"**": "w8,a8"}, tmp_path / "m", integer=True, integer_io=True)
    row, operators = checked(bundle)
    assert row.status in ("exact", "close"), row
    nodes = onnx.load(str(bundle.path / FILE)).graph.node
    made = {node.output[0]: node.op_type for node in nodes}
    (join,) = (node for node in nodes if node.op_type == "Concat")
    assert [made[name] for name in join.input] == ["Reshape", "Reshape"]
    assert operators["QLinearConv"] == 4
    assert operators["DequantizeLinear"] == 2  # between signed and unsigned codes, at both ends


@pytest.mark.parametrize("rule", ["w8,a8", "w4,a8", "w8,a8/sym", "w4,a4", "w8/tensor,auint8", "w4/affine,a8"])
def test_a_cnn_with_float_results_is_fused(rule, tmp_path):
    bundle = exported(CNN, {"**": rule}, tmp_path / "m")
    row, operators = checked(bundle)
    assert (operators["QLinearConv"], operators["QGemm"], operators["MatMulIntegerToFloat"]) == (2, 1, 1)
    assert operators["DequantizeLinear"] == 0
    # No grid at the end: what a step of the last input can do, times how many hidden codes were off (measured: up to 3.3).
    source, weight = (s for s in bundle.manifest["sites"] if s["path"] == "Dense_1/kernel")
    step = source["scale"] * np.max(weight["scale"]) * (2 ** (weight["bits"] - 1) - 1)
    assert row.difference < 5 * step * (2 if "affine" in rule else 1)


@pytest.mark.parametrize("rule", ["w8,a8", "w4,a8"])
def test_a_residual_network_runs_in_integers(rule, tmp_path):
    row, operators = checked(exported(Residual, {"**": rule}, tmp_path / "m", integer=True))
    assert row.status in ("exact", "close"), row
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QLinearGlobalAveragePool"]) == (7, 2, 1)
    assert operators["Transpose"] <= 1  # one at the entry at most; a batch of images comes channels last
    assert (operators["Conv"], operators["DequantizeLinear"]) == (0, 1)  # the result is dequantized


@pytest.mark.parametrize("rule", ["w4", "w3", "w4/g32", "w4/g32/affine", "w4/g32,a8", "w8", "w8/g16", "w4/g24"])
def test_weights_stay_narrow_where_inputs_are_floats(rule, tmp_path):
    bundle = exported(Block, {"**": rule}, tmp_path / "m")
    row, operators = checked(bundle)
    assert row.status in ("exact", "close"), row
    # A small weight with zero points is a constant of what is left without them: 5 bits, in bytes.
    assert row.bits_per_weight == (8 if "w8" in rule else 4) or ("affine" in rule and row.bits_per_weight < 5)
    weights = sum(int(np.prod(w["shape"])) for w in bundle.manifest["weights"])
    assert row.bytes <= weights * row.bits_per_weight / 8 + 16 * 1024
    if "/g32" in rule:
        blocks = [
            a.i for n in onnx.load(str(bundle.path / FILE)).graph.node for a in n.attribute if a.name == "block_size"
        ]
        assert 32 in blocks  # and 8, of the heads that the last dense layer of attention sums over
        assert operators["MatMulNBits"] >= 5 or "a8" in rule  # one group: the dense layers are fused as bytes


@pytest.mark.parametrize("rule", ["w8,a8", "w4,a8", "w8,a8/dynamic", "w4/g16"])
def test_a_language_model_looks_tokens_up(rule, tmp_path):
    bundle = exported(Language, {"**": rule}, tmp_path / "m")
    row, operators = checked(bundle)
    assert row.status in ("exact", "close"), row
    assert row.bits_per_weight == (8 if "w8" in rule else 4)
    assert operators["Gather"] >= 1
    if rule in ("w8,a8", "w4,a8"):
        assert operators["MatMulIntegerToFloat"] + operators["QLinearMatMul"] == 9
        assert operators["DequantizeLinear"] == 0


def test_a_full_integer_transformer_is_the_universal_form(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        forms, "write", lambda form, lowered, write=forms.write_form: seen.append(lowered) or write(form, lowered)
    )
    bundle = exported(Block, {"**": "w8,a8"}, tmp_path / "m", integer=True)
    _, operators = checked(bundle)
    ran = session(bundle.path / FILE)
    (got,) = ran.run(None, {ran.get_inputs()[0].name: bundle.vectors()[0][0]})
    # Softmax and layer norms are float in the universal form: five steps from the served model, none from itself.
    wanted = jax.jit(jax.extend.core.jaxpr_as_fun(universal_jaxpr(seen[0])))(*seen[0].vectors)[0]
    assert np.abs(got - wanted).max() <= 1.01 * bundle.manifest["outputs"][0]["scale"]
    assert np.mean(got != wanted) < 0.01
    assert (operators["QGemm"], operators["QLinearMatMul"], operators["QLinearAdd"]) == (6, 2, 2)


def test_the_file_says_what_it_is(tmp_path):
    bundle = exported(CNN, {"**": "w8,a8"}, tmp_path / "m", integer=True)
    model = onnx.load(str(bundle.path / FILE))
    assert model.producer_name == "lowbit"
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["lowbit.rounding"] == bundle.manifest["rounding"]
    for ours, theirs in (
        (bundle.manifest["inputs"], model.graph.input),
        (bundle.manifest["outputs"], model.graph.output),
    ):
        shapes = [[d.dim_value for d in entry.type.tensor_type.shape.dim] for entry in theirs]
        assert [(e["name"], e["shape"]) for e in ours] == list(zip([e.name for e in theirs], shapes, strict=True))


def test_a_name_is_there_once(tmp_path):
    def recurrent(params, x, state):
        hidden = jnp.tanh(x @ params["x"] + state @ params["h"])
        return {"state": hidden, "x": x}

    params = {"x": jnp.asarray(normal(0, 16, 16)), "h": jnp.asarray(normal(1, 16, 16))}
    args = jnp.asarray(normal(2, 2, 16)), jnp.asarray(normal(3, 2, 16))
    plan = lb.bind(recurrent, {"**": "w4"}, params, *args)
    qparams = lb.pack(plan, params, lb.init(recurrent, plan, params, *args))
    bundle = lb.export(recurrent, plan, qparams, args, tmp_path / "m", targets=["onnxruntime"])
    model = onnx.load(str(bundle.path / FILE))
    assert [entry.name for entry in model.graph.output] == ["state/out", "x/out"]
    assert checked(bundle)[0].status in ("exact", "close")


@pytest.mark.parametrize(("graphs", "integer"), [(dense_graphs, True), (image_graphs, True), (image_graphs, False)])
def test_random_networks(graphs, integer, tmp_path):
    @FUZZ
    @given(graph=graphs(), rule=st.sampled_from(["w8,a8", "w4,a8", "w3/tensor,a8", "w8,a4"]), seed=st.integers(0, 999))
    def check(graph, rule, seed):
        params, x = graph.params(seed), jax.random.normal(jax.random.key(seed), graph.shape)
        rule = rule if integer else rule.partition(",")[0]
        plan = lb.bind(graph, {"**": rule}, params, x, integer=integer)
        qparams = lb.pack(plan, params, lb.init(graph, plan, params, x))
        bundle = lb.export(graph, plan, qparams, (x,), tmp_path / "m", integer_io=integer, targets=["onnxruntime"])
        (row,) = verify(bundle.path, ["onnxruntime"]).rows
        assert row.status in ("exact", "close"), (graph, rule, seed, row)

    check()


def test_the_manifest_says_what_a_session_needs(tmp_path):
    bundle = exported(CNN, {"**": "w8,a8"}, tmp_path / "m", integer=True)
    wanted = {"session_options": {"session.qdq_matmulnbits_accuracy_level": "1", "session.x64quantprecision": "1"}}
    openvino = {"options": {"LP_TRANSFORMS_MODE": "NO"}}
    assert bundle.manifest["runtimes"] == {"onnxruntime": wanted, "openvino": openvino}


@pytest.mark.parametrize("text", ["w4/g8/int5,a8", "w4/signed,a8"])
def test_signed_and_integer_scales_are_int8_with_positive_ones(text, tmp_path):
    """A derived weight and a parameter; the integers of the full-integer plan to the last bit."""
    params = {"w": normal(20, 32, 16), "gain": np.abs(normal(21, 16)) + 0.5, "v": normal(22, 16, 8)}
    x = normal(23, 6, 32)

    def fn(p, x):
        return jnp.maximum(x @ (p["w"] * p["gain"]), 0.0) @ p["v"]

    plan = lb.bind(fn, {"**": text}, params, x, integer=True)
    qparams = lb.pack(plan, params, lb.calibrate(fn, plan, params, [(x,)]))
    bundle = lb.export(fn, plan, qparams, (x,), tmp_path / "m", targets=["onnxruntime"], integer_io=True)
    (row,) = verify(bundle.path, ["onnxruntime"]).rows
    assert (row.status, row.difference) == ("exact", 0.0)
    assert {w["stored_bits"] for w in bundle.manifest["weights"]} == {8}
