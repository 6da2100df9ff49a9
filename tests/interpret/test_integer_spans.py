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


def _turned(factor):
    """``x``, then 12 turns of ``factor * h``, relu at each."""

    def fn(p, x):
        first = x @ p["cls"]
        h, _ = jax.lax.scan(lambda h, _: (jax.nn.relu(h) * factor, None), first, None, length=12)
        return h @ p["box"][:5]

    return fn


@pytest.mark.parametrize(("factor", "which"), [(2.0, "starts with"), (0.5, "ends with")])
def test_a_carry_that_grows_out_of_its_grid_is_an_error(factor, which):
    """2 ** 12 times as large, or as small, after the turns: 8 bits hold 2 ** 8."""
    with pytest.raises(
        ValueError, match=rf"the scan cls/scan_0 \(test_integer_spans.py:\d+\) carries .*{which} .*levels"
    ):
        _served(_turned(factor))
    assert _served(_turned(1.0)).shape == (16, 4)


def test_what_a_mask_chooses_shares_a_grid_and_the_mask_does_not():
    mask = jnp.arange(16)[:, None] % 2 == 0
    fn = lambda p, x, m: jnp.where(m, x @ p["box"], x @ (p["box"][:, ::-1] * 1))  # noqa: E731
    plan = lb.bind(fn, {"**": "w8,a8"}, P, X * 50, mask, integer=True)
    qstate = lb.init(fn, plan, P, X * 50, mask)
    got = np.asarray(lb.execute(fn, plan)(lb.pack(plan, P, qstate), X * 50, mask), np.float64)
    x, box = np.asarray(X, np.float64) * 50, np.asarray(P["box"], np.float64)
    truth = np.where(mask, x @ box, x @ box[:, ::-1])
    assert np.abs(got - truth).max() < 0.05 * np.abs(truth).max()


def test_a_bound_that_is_0_on_the_grid_is_a_warning():
    with pytest.warns(
        UserWarning, match=r"the bound 0.01 of the clip after box \(test_integer_spans.py:\d+\) is less than"
    ):
        _served(lambda p, x: jnp.maximum(x @ p["box"], 0.01))
    _served(lambda p, x: jnp.clip(x @ p["box"], 0.0, 50.0))


def test_packing_looks_at_the_grids_that_training_made_and_at_those_measured_under_jit():
    def fn(p, x):
        return jnp.concatenate([x @ p["box"], jax.nn.relu(x @ p["box"]) * 0.2], -1)

    plan = lb.bind(fn, {"**": lb.lsq("w8,a8")}, P, X, integer=True)
    qstate = lb.init(fn, plan, P, X)
    lb.pack(plan, P, qstate)
    _, trained = lb.simulate(fn, plan, train=True)(P, qstate, X, key=jax.random.key(0), step=0)
    grid = next(step.grid for step in plan.steps if step.kind == "concatenate")
    wider = {**trained["learn"][grid], "output": jax.tree.map(lambda s: s * 60, trained["learn"][grid]["output"])}
    trained = {**trained, "learn": {**trained["learn"], grid: wider}}
    with pytest.raises(ValueError, match=r"the concatenate \S*concatenate_0 .*levels. Give them a grid each"):
        lb.pack(plan, P, trained)

    def swallowed(p, x):
        return jnp.concatenate([_boxes(p, x), _scores(p, x)], -1)

    plan = lb.bind(swallowed, {"**": "w8,a8"}, P, X, integer=True)
    unchecked = jax.jit(lambda x: lb.init(swallowed, plan, P, x))(X)
    with pytest.raises(ValueError, match=r"the concatenate \S*concatenate_0 .*Give them a grid each"):
        lb.pack(plan, P, unchecked)


def test_spans_stay_in_their_place_in_training():
    """Under the key that they were measured for, also where a layer is called as a role is, and another comes after it."""

    def fn(p, x):
        return jnp.maximum(x @ p["weight"], 0.5) @ p["z"]

    params = {"weight": P["box"], "z": P["box"][:4]}
    plan = lb.bind(fn, {"**": "w8,a8"}, params, X, integer=True)
    qstate = lb.init(fn, plan, params, X)
    assert "spans of weight" in qstate["fixed"]["weight"]
    _, trained = lb.simulate(fn, plan, train=True)(params, qstate, X, key=jax.random.key(0), step=0)
    assert jax.tree.structure(trained) == jax.tree.structure(qstate)
