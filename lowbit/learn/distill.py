"""Distillation losses: the float model teaches its quantized self. Plain functions of arrays."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def logits_loss(
    student: Float[Array, "... classes"], teacher: Float[Array, "... classes"], *, temperature: float = 1.0
) -> Float[Array, ""]:
    """Returns ``T**2 KL(softmax(teacher / T) || softmax(student / T))``, the mean over all but the class axis.

    Float32; no gradient reaches the teacher.

    Reference: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015,
    https://arxiv.org/abs/1503.02531, section 2.

    Args:
        student: logits of the quantized model.
        teacher: logits of the float model, of the same shape.
        temperature: positive; higher is softer.

    Raises:
        ValueError: for another shape or temperature.

    Example:
        >>> float(logits_loss(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]])))
        0.0
    """
    _check_shapes("logits", student, teacher)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scaled = [x.astype(jnp.float32) * (1.0 / temperature) for x in (student, jax.lax.stop_gradient(teacher))]
    log_student, log_teacher = (jax.nn.log_softmax(x, axis=-1) for x in scaled)
    divergence = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
    return jnp.mean(divergence) * temperature**2


def feature_loss(
    student: Mapping[str, Float[Array, "..."]], teacher: Mapping[str, Float[Array, "..."]]
) -> Float[Array, ""]:
    """Returns the mean over features of the normalised squared error ``sum (s - t)**2 / sum t**2``.

    Features count the same whatever their size and scale. Float32; no gradient reaches the teacher.

    Args:
        student: features of the quantized model, by name.
        teacher: those of the float model.

    Raises:
        ValueError: for other names or shapes.

    Example:
        >>> x = jnp.array([3.0, 4.0])
        >>> round(float(feature_loss({"a": 1.1 * x}, {"a": x})), 4)
        0.01
    """
    if set(student) != set(teacher) or not student:
        raise ValueError(f"both sides need the same features, got {sorted(student)} and {sorted(teacher)}")
    losses = []
    for name in sorted(student):
        _check_shapes(name, student[name], teacher[name])
        goal = jax.lax.stop_gradient(teacher[name]).astype(jnp.float32)
        error = jnp.sum(jnp.square(student[name].astype(jnp.float32) - goal))
        losses.append(error * (1.0 / jnp.maximum(jnp.sum(jnp.square(goal)), 1e-20)))
    return jnp.mean(jnp.stack(losses))


def _check_shapes(name: str, student: Array, teacher: Array) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"{name}: student {student.shape} and teacher {teacher.shape} differ in shape")
