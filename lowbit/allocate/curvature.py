"""Scores from the weights' side: squared gradients (Fisher), traces of the Hessian (Hutchinson), noise alone, one slope a layer.

All are a number per weight times the squared error of a candidate, so that another quantizer needs no new run. Errors of inputs
are not in them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.paths import flatten
from lowbit.interpret.state import QState, get, quantizer_of
from lowbit.interpret.trace import Model
from lowbit.plan.rows import Plan


def weights_of(plan: Plan, params: Any) -> dict[str, Array]:
    """Returns the weights that are quantized, by the path of the parameter.

    Raises:
        ValueError: for one that is computed from parameters: it has no gradient of its own here.
    """
    leaves = dict(zip(*flatten(params)[:2], strict=True))
    derived = [row.path for row in plan.quantized if row.weight is not None and row.weight.kind != "leaf"]
    if derived:
        raise ValueError(f"{', '.join(derived)}: the weight is no parameter; use method='taylor', 'mse' or 'kl'")
    return {key: leaves[key] for key in plan.leaf_sites()}


def errors(plan: Plan, qstate: QState, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Returns what quantization changes of every weight."""
    by_path = {}
    for key, site in plan.leaf_sites().items():
        q = quantizer_of(site).quantize(get(qstate, key, site.role), weights[key], site.operand)
        by_path[key] = q.dequantize().astype(jnp.float32) - weights[key].astype(jnp.float32)
    return by_path


def _scalar(fn: Model, loss: Callable[..., Any] | None) -> Callable[..., Array]:
    def value(weights: Mapping[str, Array], params: Any, args: Any, kwargs: Any) -> Array:
        paths, leaves, tree = flatten(params)
        mixed = [weights.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        y = fn(jax.tree.unflatten(tree, mixed), *args, **kwargs)
        y = y if loss is None else loss(y)
        if getattr(y, "shape", None) != ():
            raise ValueError(f"loss must make a scalar of the result of fn, got {jax.tree.map(jnp.shape, y)}")
        return y

    return value


@functools.lru_cache(maxsize=16)
def squared_gradients(fn: Model, loss: Callable[..., Any] | None) -> Callable[..., Any]:
    """Returns ``(weights, params, args, kwargs) -> g^2`` of one batch, by parameter, jitted."""
    value = _scalar(fn, loss)

    @jax.jit
    def run(weights: Any, params: Any, args: Any, kwargs: Any) -> Any:
        return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), jax.grad(value)(weights, params, args, kwargs))

    return run


@functools.lru_cache(maxsize=16)
def traces(fn: Model, loss: Callable[..., Any] | None, probes: int) -> Callable[..., Any]:
    """Returns ``(key, weights, params, args, kwargs) -> trace of the Hessian over its size``, by parameter, jitted.

    ``E v_l . (H v)_l`` over random signs ``v`` is the trace of the layer's block: one product serves all layers.

    Reference: HAWQ-v2 (arXiv 1911.03852).
    """
    value = _scalar(fn, loss)

    @jax.jit
    def run(key: Array, weights: Any, params: Any, args: Any, kwargs: Any) -> Any:
        slope = jax.grad(lambda w: value(w, params, args, kwargs))

        def probe(key: Array) -> Any:
            keys = dict(zip(weights, jax.random.split(key, len(weights)), strict=True))
            signs = {path: jax.random.rademacher(keys[path], w.shape, w.dtype) for path, w in weights.items()}
            product = jax.jvp(slope, (weights,), (signs,))[1]
            return jax.tree.map(lambda v, hv: jnp.sum(v.astype(jnp.float32) * hv) / v.size, signs, product)

        return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.lax.map(probe, jax.random.split(key, probes)))

    return run


@functools.lru_cache(maxsize=16)
def slopes(fn: Model, measure: Callable[[Any, Any], Any], level: float) -> Callable[..., Any]:
    """Returns ``(key, index, weights, params, right, args, kwargs) -> measure / level^2`` with noise on one weight, jitted.

    The noise is Gaussian, ``level`` times the weight's norm: HIGGS' linearity says that the loss is then ``alpha level^2``.
    ``index`` counts the weights and is data: one program serves them all. ``right``: the float result.

    Reference: HIGGS (arXiv 2411.17525), theorem 1.
    """

    @jax.jit
    def run(key: Array, index: Array, weights: Any, params: Any, right: Any, args: Any, kwargs: Any) -> Array:
        def noisy(i: int, w: Array) -> Array:
            wide = w.astype(jnp.float32)
            noise = jax.random.normal(jax.random.fold_in(key, i), w.shape)
            noise = noise * (level * jnp.linalg.norm(wide.ravel()) / jnp.linalg.norm(noise.ravel()))
            return (wide + noise).astype(w.dtype)

        moved = {
            path: jax.lax.cond(index == i, functools.partial(noisy, i), lambda w: w, w)
            for i, (path, w) in enumerate(weights.items())
        }
        paths, leaves, tree = flatten(params)
        mixed = [moved.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        return measure(right, fn(jax.tree.unflatten(tree, mixed), *args, **kwargs)) / level**2

    return run
