"""`qronos`: means of results are the float model's, the target is what least squares says, and it beats GPTQ on unseen data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.inputs import Inputs
from lowbit.recipes.lookup import named


def network(params, x):
    for layer in ("a", "b", "c"):
        x = x @ params[layer]["w"] + params[layer]["b"]
        x = x if layer == "c" else jax.nn.relu(x)
    return x


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(2)
    sizes = dict(zip("abc", ((24, 32), (32, 32), (32, 12)), strict=True))
    params = {
        name: {
            "w": jnp.asarray(rng.standard_t(4, size=shape) / np.sqrt(shape[0]), jnp.float32),
            "b": jnp.asarray(rng.normal(size=shape[1]), jnp.float32),
        }
        for name, shape in sizes.items()
    }
    mixed = rng.normal(size=(24, 24)) * np.geomspace(1, 0.05, 24)
    x = (rng.normal(size=(1536, 24)) @ mixed + 1.0).astype(np.float32)
    return params, [(x[:512],), (x[512:1024],)], x[1024:]


def test_means_are_the_float_models_and_unseen_errors_are_smaller(case):
    params, batches, unseen = case
    lost = {}
    for name in ("gptq", "qronos"):
        qparams, plan, report = lb.quantize(network, params, {"**": "w3,a8"}, batches=batches, recipe=name)
        run = lb.execute(network, plan)
        off = np.concatenate([np.asarray(run(qparams, x) - network(params, x), np.float64) for (x,) in batches])
        lost[name] = float(np.sum(np.square(run(qparams, unseen) - network(params, unseen))))
        bias = np.abs(off.mean(axis=0)) / off.std(axis=0)
        # What is left of means are the ranges that are measured again once all is solved.
        assert bias.max() < 0.05 if name == "qronos" else bias.max() > 0.2
        assert (name == "qronos") == any("b moved by" in note for line in report.lines for note in line.notes)
    assert lost["qronos"] < 0.7 * lost["gptq"]  # 0.52 to 0.68 over four draws of everything, 0.68 on this one


def test_the_problem_is_the_one_of_least_squares_with_a_bias():
    """Of any ``Q`` the error over all samples, the best bias taken, is the one in the norm of the problem and a constant."""
    rng = np.random.default_rng(1)
    rows, size, columns = 400, 5, 3
    x = rng.normal(size=(rows, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)
    seen = x + 0.3 * rng.normal(size=x.shape) + 0.2
    w = rng.normal(size=(size, columns))
    moments = (m[None].astype(np.float32) for m in (seen.T @ seen / rows, seen.T @ x / rows, seen.mean(0), x.mean(0)))
    problem = Inputs(*moments)
    moment, cross = problem.centered()
    assert cross is not None
    h, c = moment[0].astype(np.float64), cross[0].astype(np.float64)
    aim = np.linalg.solve(h, c @ w)
    constants = []
    for _ in range(4):
        q = w + rng.normal(size=w.shape)
        off = seen @ q - x @ w
        shift = problem.shift(w[None], q[None])
        assert shift is not None
        np.testing.assert_allclose(shift[0], -off.mean(0), atol=1e-5)
        constants.append(np.mean((off - off.mean(0)) ** 2, axis=0) - np.einsum("kn,kj,jn->n", q - aim, h, q - aim))
    np.testing.assert_allclose(constants, np.broadcast_to(constants[0], (4, columns)), atol=2e-5)


def test_a_constant_input_is_no_direction():
    """A bias takes all of it: neither the moment nor the target may follow rounding errors there."""
    x = np.stack([np.full(64, 7.0), np.linspace(-1, 1, 64)], axis=1).astype(np.float32)
    given = Inputs(x.T @ x[None] / 64, x.T @ x[None] / 64, x.mean(0)[None], x.mean(0)[None])
    h, c = given.centered()
    assert c is not None
    np.testing.assert_array_equal(h[0, 0], 0)
    np.testing.assert_array_equal(c[0, 0], 0)
    assert h[0, 1, 1] == pytest.approx(np.var(x[:, 1]), rel=1e-5)


def test_auto_picks_by_plan_and_says_so(case):
    params, batches, _ = case
    said = {}
    for rule in ("w4", "w4/tensor", "w8,a8", "w3", "w4,a8"):
        plan = lb.bind(network, {"**": rule}, params, batches[0][0])
        pick = named("auto").pick
        assert pick is not None
        said[rule] = str(pick(plan))
    assert "rewrite=" not in said["w4"]
    assert "blocks=" not in said["w4"] + said["w4/tensor"] + said["w8,a8"]
    assert "blocks=Reconstruction" in said["w3"]
    assert "3 weights have few bits" in said["w3"]
    count = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)
    assert f"{count} weights, of few bits: the whole network is learned" in said["w4,a8"]
    wide = lb.bind(lambda p, x: x @ p, {"**": "w4,a8"}, jnp.zeros((1024, 257)), jnp.zeros((2, 1024)))
    assert "1 weights have few bits: blocks are learned" in str(named("auto").pick(wide))
    assert "Equalize" in said["w4/tensor"]
    assert "3 weights have one scale" in said["w4/tensor"]
    assert "Smooth" in said["w8,a8"]
    assert "3 inputs have one static range" in said["w8,a8"]


def test_a_weight_in_a_loop_over_time_has_its_own_target_and_says_so():
    rng = np.random.default_rng(6)
    params = {
        "in": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32),
        "own": jnp.asarray(rng.normal(size=(8, 8)) / 4, jnp.float32),
    }

    def fn(p, x):
        def turn(h, now):
            return jnp.tanh(now + h @ p["own"]), None

        return jax.lax.scan(turn, jnp.zeros((x.shape[0], 8)), jnp.swapaxes(x @ p["in"], 0, 1))[0]

    x = np.float32(rng.normal(size=(64, 3, 4)))
    qparams, plan, report = lb.quantize(fn, params, {"**": "w4"}, batches=[(x,)], recipe="qronos")
    notes = {line.path: line.notes for line in report.lines}
    assert any("loop over time" in note for note in notes["own"])
    assert not any("loop over time" in note for note in notes["in"])
    assert np.isfinite(np.asarray(lb.execute(fn, plan)(qparams, x))).all()
