"""Outlier channel splitting: the same function, codes that add up, the fewest copies; and what it is for, in float64."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowbit as lb
from lowbit.rewrites.split import copies, split
from tests.values import normal


def outlying(seed=0, units=64, times=60.0):
    """A gated layer of two, with a unit whose outgoing weights are 60 times the others', and one 10 times."""
    p = {"up": normal(seed, 16, units), "gate": normal(seed + 1, 16, units), "b": normal(seed + 2, units)}
    down = np.array(normal(seed + 3, units, 8))
    down[5, 2], down[9] = times, times / 6
    return {**p, "down": jnp.asarray(down), "c": normal(seed + 4, 8)}


def gated(p, s, x):
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"] + p["b"])) @ p["down"] + p["c"]


def test_units_are_copied_through_any_function_of_elements():
    params, x = outlying(), normal(9, 7, 16)
    rewritten, new, _ = split(share=0.1, batches=[(x,)])(gated, params, {})
    added = new["up"].shape[1] - 64
    assert 0 < added <= 6
    assert [new[k].shape for k in ("gate", "b", "down")] == [(16, 64 + added), (64 + added,), (64 + added, 8)]
    want, got = (np.asarray(gated(p, {}, x), np.float64) for p in (params, new))
    assert np.abs(want - got).max() < 1e-5 * np.abs(want).max()
    assert np.abs(np.asarray(new["down"])).max() < 60 / 4
    assert "64 units" in str(rewritten)


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_the_best_of_all(seed):
    """Against every way to add at most 4 to 4 units."""
    largest = np.abs(np.random.default_rng(seed).standard_t(1.5, size=4))
    found = copies(largest, 4)
    ways = (w for w in itertools.product(range(1, 6), repeat=4) if sum(w) <= 8)
    assert sum(found) <= 8
    assert np.max(largest / found) == pytest.approx(min(np.max(largest / np.array(w)) for w in ways), rel=1e-12)


def test_codes_of_copies_add_up_to_that_of_the_whole():
    """Hermite's identity: a unit of ordinary weights fixes the step, so that the shares of the others are on its grid."""
    rng = np.random.default_rng(3)
    down = rng.uniform(-1, 1, size=(20, 400))
    down[4] = rng.uniform(-2.9, 2.9, size=400)
    down[7, 0] = 1.0
    down[4, 0] = 2.9  # in three shares, on the grid that 1.0 fixes
    params = {"up": normal(0, 4, 20), "down": jnp.asarray(down, jnp.float32)}
    _, new, _ = split(share=0.1, least=2.0, batches=[(jnp.ones((1, 4)),)])(
        lambda p, s, x: jnp.tanh(x @ p["up"]) @ p["down"], params, {}
    )
    after = np.asarray(new["down"], np.float64)
    assert after.shape == (22, 400)
    step = 1.0 / 127
    codes = np.round(after[4:7] / step).sum(0)
    whole = np.round(down[4].astype(np.float32).astype(np.float64) / step)
    assert np.mean(codes == whole) > 0.99  # a half between two codes falls to either side in float32
    assert np.abs(codes - whole).max() <= 1
    plain = np.round(down[4] / 3 / step) * 3
    assert np.mean(plain == whole) < 0.5


class _Block(nnx.Module):
    """What cannot be split beside what can: a residual sum that a norm reads, and a hidden layer."""

    def __init__(self, rngs):
        self.mix, self.norm = nnx.Linear(16, 16, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
        self.up, self.down = nnx.Linear(16, 48, rngs=rngs), nnx.Linear(48, 16, rngs=rngs)
        self.down.kernel[...] = self.down.kernel[...].at[3, 3].set(12.0)

    def __call__(self, x):
        h = self.norm(x + self.mix(x))
        return h + self.down(nnx.gelu(self.up(h)))


def test_a_block_is_split_where_it_can_be_and_says_where_not():
    graph, params = nnx.split(_Block(nnx.Rngs(0)), nnx.Param)
    x = normal(1, 5, 16)
    rewritten, new, _ = lb.chain(split(share=0.2), batches=[(x,)])(lambda p, s, x: nnx.merge(graph, p)(x), params, {})
    assert new["up"]["kernel"][...].shape[1] > 48
    assert new["mix"]["kernel"][...].shape == (16, 16)
    said = str(rewritten)
    assert "mix/kernel: left as it is: add (test_split.py:" in said
    assert "up/kernel -> down/kernel: 48 units" in said
    want, got = (np.asarray(nnx.merge(graph, p)(x), np.float64) for p in (params, new))
    assert np.abs(want - got).max() < 1e-5 * np.abs(want).max()


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="b")(nn.tanh(nn.Dense(8, name="a")(x)))


def test_a_module_that_checks_its_shapes_is_left_with_what_it_says():
    params = _Linen().init(jax.random.key(0), jnp.ones((1, 4)))
    params["params"]["b"]["kernel"] = params["params"]["b"]["kernel"].at[2].set(50.0)
    rewritten, new, _ = split(share=0.5, batches=[(jnp.ones((1, 4)),)])(
        lambda p, s, x: _Linen().apply(p, x), params, {}
    )
    jax.tree.map(np.testing.assert_array_equal, params, new)
    assert 'left as it is: with more units the function says: For parameter "kernel" in "/a"' in str(rewritten)


def test_shapes_that_are_written_into_the_function_are_left_with_the_reason():
    params = {"a": normal(0, 4, 8), "b": jnp.asarray(np.diag([50.0] + [1.0] * 7), jnp.float32)}

    def fn(p, s, x):
        return jnp.tanh((x @ p["a"]).reshape(-1, 8)) @ p["b"]

    rewritten, new, _ = split(share=0.5, batches=[(normal(1, 3, 4),)])(fn, params, {})
    jax.tree.map(np.testing.assert_array_equal, params, new)
    assert "a -> b: left as it is: with more units the function" in str(rewritten)


def test_a_recurrent_weight_and_even_weights_are_left():
    params = {"w": normal(0, 8, 8), "u": normal(1, 4, 8), "o": normal(2, 8, 2)}

    def fn(p, s, x):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h @ p["w"] + x @ p["u"]), None), jnp.zeros((2, 8)), x)[0] @ p["o"]

    rewritten, new, _ = split(batches=[(normal(3, 5, 2, 4),)])(fn, params, {})
    jax.tree.map(np.testing.assert_array_equal, params, new)
    assert "left as it is" in str(rewritten)


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"share": 1.5}, {"least": 0.5}, {"bits": 1}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="split needs"):
        split(**bad)


def test_what_one_scale_loses_falls_by_the_factor_of_the_range():
    """8-bit weights per tensor, rounded to nearest: the error over results, in float64, with splitting and without."""
    params, x = outlying(), normal(8, 200, 16)
    want = np.asarray(gated(params, {}, x), np.float64)

    def error(fn, p):
        qparams, plan, _ = lb.quantize(
            fn, p, {"down": "w8/tensor", "**": "keep"}, state={}, batches=[(x,)], recipe="rtn"
        )
        return np.mean((np.asarray(lb.execute(fn, plan)(qparams, {}, x), np.float64) - want) ** 2)

    rewritten, new, _ = split(share=0.1, batches=[(x,)])(gated, params, {})
    assert error(rewritten, new) < error(gated, params) / 8
