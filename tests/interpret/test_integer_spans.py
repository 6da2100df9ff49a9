"""Grids that several tensors share: an error where one of them is left with hardly a level, and the ways out of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from tests.values import normal

P = {"box": normal(0, 8, 4) * 30, "cls": normal(1, 8, 5)}
X = normal(2, 16, 8)


def _boxes(p, x):
    return x @ p["box"] + 320


def _scores(p, x):
    return jax.nn.sigmoid(x @ p["cls"] - 2)


def _chosen(p, x):
    return jnp.where(jnp.arange(4) > 1, x @ p["box"], _scores(p, x)[:, :4])


def _masked(p, x):
    return jnp.where(jnp.arange(5) > 2, -1e6, x @ p["cls"])


def _beside_a_constant(p, x):
    return jnp.concatenate([x @ p["box"], jnp.full((16, 1), 0.5)], -1)


def _served(fn, rule="w8,a8"):
    plan = lb.bind(fn, {"**": rule}, P, X, integer=True)
    return lb.execute(fn, plan)(lb.pack(plan, P, lb.init(fn, plan, P, X)), X)


@pytest.mark.parametrize(
    ("fn", "kind", "small"),
    [
        (lambda p, x: jnp.concatenate([_boxes(p, x), _scores(p, x)], -1), "concatenate", "cls/table_0"),
        (lambda p, x: jnp.concatenate([_boxes(p, x)[None], _scores(p, x)[None, :, :4]]), "concatenate", "move"),
        (_chosen, "select", "move"),
        (_masked, "select", "cls"),
        (_beside_a_constant, "concatenate", "constant_0"),
    ],
)
def test_a_grid_that_swallows_what_it_is_shared_with_is_an_error(fn, kind, small):
    with pytest.raises(
        ValueError, match=rf"the {kind} .*\(test_integer_spans.py:\d+\) puts .*{small}.* in \[.*levels.*Give them"
    ):
        _served(fn)


def test_every_way_out_of_it_holds_the_scores():
    """Of a grid of their own, scores keep half a step of 1 / 255; of 16 bits, half a step of the boxes' range / 32767."""
    x = np.asarray(X, np.float64)
    truth = 1 / (1 + np.exp(-(x @ np.asarray(P["cls"], np.float64) - 2)))
    range_ = np.abs(x @ np.asarray(P["box"], np.float64) + 320).max()

    def both(p, x):
        return _boxes(p, x), _scores(p, x), jnp.concatenate([x @ (p["box"] / 512) + 0.625, _scores(p, x)], -1)

    _, own, even = _served(both)
    assert np.abs(own - truth).max() < 0.02
    assert np.abs(even[:, 4:] - truth).max() < 0.02
    wide = _served(lambda p, x: jnp.concatenate([_boxes(p, x), _scores(p, x)], -1), "w8,aint16")[:, 4:]
    assert np.abs(wide - truth).max() < range_ / 32767 + 0.01


def test_what_is_0_and_what_is_alike_share_a_grid():
    assert _served(lambda p, x: jnp.concatenate([x @ p["box"], jnp.zeros((16, 1))], -1)).shape == (16, 5)
    assert _served(lambda p, x: jnp.concatenate([x @ p["box"], jax.nn.relu(x @ p["box"] * 0.1)], -1)).shape == (16, 8)


@pytest.mark.parametrize("join", [jnp.add, jnp.maximum, jnp.minimum])
def test_an_operand_lost_in_the_grid_of_a_pair_is_a_warning(join):
    kind = {"add": "add", "maximum": "max", "minimum": "min"}[join.__name__]
    with pytest.warns(UserWarning, match=rf"is less than one step .* of the {kind} \w+ \(test_integer_spans.py:\d+\)"):
        _served(lambda p, x: join(x @ p["box"], jnp.tanh((x @ p["cls"])[:, :4]) * 0.01))
