"""Rotations: orthogonal, found where a transformer has them, the function unchanged, and what they gain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.rewrites.gains import fold_gains
from lowbit.rewrites.rotate import hadamard, rotate, rotation
from tests.interpret.zoo import CASES, Case
from tests.program.nets import NETS, gated
from tests.rewrites.test_rewrites import differs
from tests.values import normal


def layered() -> Case:
    """Embeddings of tokens and places, layer norms with gains and biases, two heads side by side on one axis, gelu; a scan."""
    d, layers = 8, 3
    shapes = {
        "g1": (d,),
        "b1": (d,),
        "qkv": (d, 3 * d),
        "o": (d, d),
        "bo": (d,),
        "g2": (d,),
        "b2": (d,),
        "up": (d, 12),
        "down": (12, d),
    }
    stacked = {k: 0.5 * normal(i, layers, *s) + float(k in ("g1", "g2")) for i, (k, s) in enumerate(shapes.items())}
    params = {"layers": stacked, "tokens": normal(50, 11, d), "places": normal(51, 5, d), "g": 1 + 0.2 * normal(52, d),
              "b": normal(53, d), "head": normal(54, d, 11)}  # fmt: skip

    def norm(x, g, b):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * g + b

    def layer(x, p):
        qkv = norm(x, p["g1"], p["b1"]) @ p["qkv"]
        q, k, v = (y.reshape(*y.shape[:2], 2, 4) for y in jnp.split(qkv, 3, -1))
        a = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / 2.0)
        x = x + jnp.einsum("bhts,bshk->bthk", a, v).reshape(x.shape) @ p["o"] + p["bo"]
        return x + jax.nn.gelu(norm(x, p["g2"], p["b2"]) @ p["up"]) @ p["down"], None

    def fn(p, tokens):
        x = p["tokens"][tokens] + p["places"][None, : tokens.shape[1]]
        return norm(lax.scan(layer, x, p["layers"])[0], p["g"], p["b"]) @ p["head"]

    return Case(fn, params, (jnp.asarray([[1, 5, 10, 3, 7], [0, 2, 3, 7, 9]]),), 9)


def _run(case, *rewrites):
    fn = lambda p, s, *args: case.fn(p, *args)  # noqa: E731 (a model without state)
    same, new, _ = lb.chain(*rewrites, batches=[case.args])(fn, case.params, {})
    return same, new, differs(jax.jit(case.fn)(case.params, *case.args), jax.jit(same)(new, {}, *case.args))


def test_an_rms_transformer_turns_its_stream_and_its_heads():
    same, new, off = _run(gated(), fold_gains(), rotate())
    assert off < 1e-5
    text = str(same)
    stream = next(line for line in text.splitlines() if "embed" in line and "->" in line)
    for name in ("layers/o", "layers/down"):
        assert name in stream.split("->")[0]
    for name in ("layers/q", "layers/k", "layers/v", "layers/gate", "layers/up", "head"):
        assert name in stream.split("->")[1]
    assert stream.endswith("8 x 8")
    assert "layers/v -> layers/o: 4 x 4" in text
    moved = np.abs(np.asarray(new["embed"] - gated().params["embed"])).max()
    assert moved > 0.1
    assert "layers/up, axis 2: left as it is: mul (nets.py:" in text  # a gate multiplies what it makes


def test_a_layer_norm_keeps_its_mean():
    same, new, off = _run(layered(), fold_gains(), rotate())
    assert off < 1e-5
    stream = next(line for line in str(same).splitlines() if "tokens" in line and "->" in line)
    assert stream.endswith("8 x 8, keeping the mean")
    assert {"tokens", "layers/o", "layers/down"} == set(stream.strip().split(" -> ")[0].split(", "))
    np.testing.assert_array_equal(new["layers"]["g1"], np.ones((3, 8)))
    assert np.abs(np.asarray(new["places"] - layered().params["places"])).max() > 1e-2
    assert np.abs(np.asarray(new["layers"]["b1"] - layered().params["layers"]["b1"])).max() > 1e-3


def test_without_folded_gains_the_stream_stays_and_the_gain_is_named():
    same, new, off = _run(layered(), rotate())
    assert off < 1e-5
    assert "tokens, axis 1: left as it is: mul (test_rotate.py:" in str(same)
    np.testing.assert_array_equal(new["tokens"], layered().params["tokens"])


@pytest.mark.parametrize(
    "name",
    ["tied_embedding", "nested_jit", "carried"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("scanned_remat", "attention", "fused_qkv")],
)
def test_other_networks_are_the_same(name):
    case = NETS[name]() if name in NETS else CASES[name]()
    if name in ("scanned_remat", "attention"):
        same, new, _ = lb.chain(fold_gains(), rotate(), batches=[case.args[1:]])(case.fn, case.params, case.args[0])
        off = differs(jax.jit(case.fn)(case.params, *case.args), jax.jit(same)(new, case.args[0], *case.args[1:]))
    else:
        _, _, off = _run(case, fold_gains(), rotate())
    assert off < 1e-5


@pytest.mark.parametrize("size", [1, 2, 6, 64, 96])
@pytest.mark.parametrize("keeps_ones", [False, True])
def test_matrices_are_orthogonal_and_spread(size, keeps_ones):
    q = rotation(size, keeps_ones=keeps_ones, seed=3)
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-12)
    if keeps_ones:
        np.testing.assert_allclose(q @ np.ones(size), 1.0, atol=1e-12)
    elif size & (size - 1) == 0:
        np.testing.assert_allclose(np.abs(q), size**-0.5, atol=1e-12)
    if size > 2:
        assert not np.allclose(q, rotation(size, keeps_ones=keeps_ones, seed=4))
    with pytest.raises(ValueError, match="power of two"):
        hadamard(3)


def test_the_gain_of_a_hadamard_matrix_for_one_large_channel():
    """One channel a hundred times the others, 256 of them, int4 with a scale per token: 0.8504 becomes 0.1291 of unit power."""
    x = np.random.default_rng(0).standard_normal((20000, 256))
    x[:, 17] *= 100.0

    def error(x):
        scale = np.abs(x).max(1, keepdims=True) / 7.0
        return np.clip(np.rint(x / scale), -8, 7) * scale - x

    q = rotation(256, seed=1)
    np.testing.assert_allclose((error(x) ** 2).mean(), 0.8504, rtol=0.02)
    np.testing.assert_allclose(((error(x @ q) @ q.T) ** 2).mean(), 0.1291, rtol=0.02)
    np.testing.assert_allclose((np.delete(error(x), 17, 1) ** 2).mean(), 0.854, rtol=0.02)  # the others are wiped out
