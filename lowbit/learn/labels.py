"""Labels and masks for optax: steps get their own learning rate and no weight decay.

The trained tree is ``{"params": parameters, "learn": qstate["learn"]}``.
"""

from typing import Any

import jax
import optax


def step_labels(tree: Any) -> Any:
    """Returns ``tree`` with ``"params"`` or ``"learn"`` at every leaf, for `optax.multi_transform`.

    Args:
        tree: ``{"params": ..., "learn": ...}``.

    Raises:
        ValueError: for other keys.

    Example:
        >>> step_labels({"params": {"w": 1.0}, "learn": {"w": {"weight": {"step": 0.1}}}})
        {'learn': {'w': {'weight': {'step': 'learn'}}}, 'params': {'w': 'params'}}
    """
    _check(tree)
    return {name: jax.tree.map(lambda _, name=name: name, tree[name]) for name in sorted(tree)}


def decay_mask(tree: Any) -> Any:
    """Returns a mask for `optax.add_decayed_weights`: true for parameters of rank 2 and more, false for all that is learned.

    Decay would shrink steps, and with them every value; biases and norms are left alone as usual.

    Example:
        >>> import jax.numpy as jnp
        >>> decay_mask({"params": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "learn": {"step": jnp.ones((1, 1))}})
        {'learn': {'step': False}, 'params': {'b': False, 'w': True}}
    """
    _check(tree)
    params = jax.tree.map(lambda x: x.ndim > 1, tree["params"])
    return {"learn": jax.tree.map(lambda _: False, tree["learn"]), "params": params}


def with_step_optimizer(
    params: optax.GradientTransformation, learn: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer of ``{"params", "learn"}`` that treats the two apart.

    Args:
        params: for the parameters.
        learn: for what quantizers learn: steps, offsets, clips. Often a tenth of the learning rate, without decay.

    Example:
        >>> import jax.numpy as jnp
        >>> tree = {"params": jnp.ones(1), "learn": jnp.ones(1)}
        >>> optimizer = with_step_optimizer(optax.sgd(1.0), optax.sgd(0.1))
        >>> updates, _ = optimizer.update(tree, optimizer.init(tree), tree)
        >>> updates["params"].tolist(), [round(x, 3) for x in updates["learn"].tolist()]
        ([-1.0], [-0.1])
    """
    return optax.multi_transform({"params": params, "learn": learn}, step_labels)


def _check(tree: Any) -> None:
    if not isinstance(tree, dict) or set(tree) != {"params", "learn"}:
        got = sorted(tree) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f'the trained tree is {{"params": ..., "learn": ...}}, got {got}')
