"""A network of three products, one beside another, whose weights get thin products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.recipes.lookup import named

SIZE = 64


def network(p, x):
    return jax.nn.relu(x @ p["first"]["w"] + p["first"]["b"]) @ p["second"].T + x @ p["third"]


def case_of(weight, inputs):
    """Parameters, weights by ``weight(rng, inner, outer)``, and two batches of 200 rows, on which ``inputs(rng)`` is used."""
    rng = np.random.default_rng(0)
    drawn = {
        "first": {"w": weight(rng, SIZE, 48), "b": rng.normal(size=48)},
        "second": weight(rng, 48, 32).T,
        "third": weight(rng, SIZE, 32),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), drawn)
    changed = inputs(rng)
    return params, [(jnp.asarray(changed(rng.normal(size=(200, SIZE))), jnp.float32),) for _ in range(2)]


def quantized(name, rewrite, case, rules):
    params, batches = case
    recipe = dataclasses.replace(named(name), rewrite=rewrite)
    return lb.quantize(network, params, rules, batches=batches, recipe=recipe)


def parts(qparams, root, path, names):
    """``Q`` and the parameters beside it, in float64."""
    own = qparams.params[root][path]
    q = np.asarray(qparams.weights()[path].dequantize(), np.float64)
    return q, *(np.asarray(own[k], np.float64) for k in names)
