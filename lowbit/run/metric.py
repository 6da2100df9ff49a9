"""What is measured of outputs, and what training lowers."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is measured of outputs.

    Attributes:
        name: with its unit, the head of a column.
        of: ``of(outputs, labels)``, in numpy.
        digits: that are printed.
    """

    name: str
    of: Callable[[np.ndarray, np.ndarray], float]
    digits: int = 2


def right(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of samples, in percent, whose largest output is that of their class.

    Example:
        >>> right(np.array([[0.1, 0.9], [0.6, 0.4]]), np.array([1, 1]))
        50.0
    """
    return 100 * float(np.mean(scores.argmax(axis=-1) == labels))


ACCURACY = Metric("accuracy %", right)
"""Of classes."""


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of classes."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def absolute_error(values: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the mean absolute error."""
    return jnp.mean(jnp.abs(values - wanted))
