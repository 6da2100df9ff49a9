"""Pairs of a linear chain by algebra, and the exact choice with pairs against brute force."""

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.allocate.interactions import interactions, solve_pairs
from lowbit.allocate.problem import Infeasible


def test_two_linear_layers_interact_as_algebra_says():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 6)), jnp.float32)
    params = {
        "a": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
    }

    def chain(p, x):
        return x @ p["a"] @ p["b"]

    plan = lb.bind(chain, {"**": "w2"}, params, x)
    found = interactions(chain, plan, params, [(x,)], candidate="w2")
    packed = lb.pack(plan, params, lb.init(chain, plan, params, x)).weights()
    a, b, x64 = (np.asarray(v, np.float64) for v in (params["a"], params["b"], x))
    da, db = (np.asarray(packed[k].dequantize(), np.float64) - w for k, w in (("a", a), ("b", b)))
    first, second, product = x64 @ da @ b, x64 @ a @ db, x64 @ da @ db
    # |u + v + w|^2 - |u|^2 - |v|^2: the last term has mean 0 where the errors of both layers are independent.
    law = np.mean(product**2 + 2 * first * second + 2 * product * (first + second))
    assert found[0, 1] == pytest.approx(law, rel=1e-3)
    assert found[0, 0] == pytest.approx(np.mean(first**2), rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_solved_as_brute_force_does(seed):
    rng = np.random.default_rng(seed)
    n = 10
    pairs = rng.normal(size=(n, n)) + 3 * np.eye(n)
    pairs = pairs + pairs.T
    saved = rng.integers(1, 20, n).astype(float)
    every = np.indices((2,) * n).reshape(n, -1).astype(float)
    cost = np.diag(pairs) @ every + np.einsum("ik,ij,jk->k", every, np.triu(pairs, 1), every)
    needed = float(np.floor(saved.sum() / 2))
    narrow, best = solve_pairs(pairs, saved, needed)
    assert best == pytest.approx(cost[saved @ every >= needed].min(), rel=1e-12)
    assert saved @ narrow >= needed
    with pytest.raises(Infeasible, match="together save"):
        solve_pairs(pairs, saved, saved.sum() + 1)
