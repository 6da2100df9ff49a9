"""The one training loop: float and quantization-aware training differ only in the loss they pass."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .experiment import Around, Fit
from .samples import Samples
from .states import State

Trainable = Callable[[Any, Any, jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""``loss(tree, rest, inputs, labels, key, step) -> (mean loss, rest')``: ``tree`` gets gradients, ``rest`` does not."""


class Watch(Protocol):
    """What the loop tells the outside: after every step, and after every epoch."""

    def step(self, done: int, total: int, loss: jax.Array) -> None:
        """After every step, whose loss may not be computed yet."""
        ...

    def epoch(self, epoch: int, values: Mapping[str, Any]) -> None:
        """After every epoch."""
        ...


def optimizer(fit: Fit, steps: int, around: Around | None = None) -> optax.GradientTransformation:
    """Returns Adam with two learning rates: ``tree["learn"]`` gets ``fit.step_lr`` and its decay, the rest ``fit.lr``."""

    def adam(lr: float) -> optax.GradientTransformation:
        def cosine(
            count: Any,
        ) -> jax.Array:  # optax's own multiplies integers with floats, which strict promotion refuses
            done = jnp.minimum(jnp.asarray(count, jnp.float32) / np.float32(steps), np.float32(1))
            return np.float32(lr / 2) * (np.float32(1) + jnp.cos(np.float32(np.pi) * done))

        return optax.adam(cosine)

    def label(tree: Mapping[str, Any]) -> dict[str, str]:
        return {name: "learn" if name == "learn" else "params" for name in tree}

    params, learn = adam(fit.lr), adam(fit.step_lr)
    if around is not None:
        params = around(params, steps)
    if fit.step_decay:
        learn = optax.chain(optax.add_decayed_weights(fit.step_decay), learn)
    return optax.multi_transform({"params": params, "learn": learn}, label)


@functools.lru_cache(maxsize=64)
def stepper(
    loss: Trainable, fit: Fit, steps: int, around: Around | None = None
) -> Callable[..., tuple[Any, Any, Any, jax.Array]]:
    """Returns the jitted step, cached so that every seed shares one compilation.

    Steps are called from Python, not scanned: XLA runs a convolution inside a loop on one core and without its fast
    kernels (48 s an epoch against 5 s, jax 0.10.2 on 2 cores).
    """
    update = optimizer(fit, steps, around).update

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(tree, rest, moments, inputs, labels, key, index):
        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(
            tree, rest, inputs, labels, jax.random.fold_in(key, index), index
        )
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its step counts with floats
            change, moments = update(gradient, moments, tree)
            return optax.apply_updates(tree, change), rest, moments, value

    return step


def _spread(devices: int) -> tuple[Any, Any]:
    """Where batches and parameters are: in equal parts on so many devices, and on all of them; None where it is one."""
    if devices == 1:
        return None, None
    if devices > len(jax.devices()):
        raise ValueError(f"fit.devices is {devices}, and there are {len(jax.devices())}")
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())


def train(
    loss: Trainable,
    tree: Mapping[str, Any],
    rest: Any,
    data: Samples,
    fit: Fit,
    *,
    seed: int,
    state: State,
    watch: Watch,
    around: Around | None = None,
    evaluate: Callable[[Any, Any], Mapping[str, Any]] | None = None,
) -> tuple[Any, Any]:
    """Returns ``tree`` and ``rest`` after ``fit.epochs`` epochs.

    The state after every epoch is kept; a loop that was killed goes on from there and ends with the same
    bits as one that was not.

    Args:
        loss: see `Trainable`. The same function object for every seed, so that it compiles once.
        tree: what is trained; ``tree["learn"]`` has its own learning rate.
        rest: what the loss carries along without a gradient.
        data: training samples and labels.
        fit: epochs, batch size, learning rates.
        seed: of the order of samples and of the loss's random keys.
        state: where the state is kept; one that depends on something else, or is damaged, is not continued.
        watch: told about every step and epoch.
        around: makes the parameters' optimizer out of Adam, or None.
        evaluate: what is logged of ``tree, rest`` with every epoch, beside the mean loss.

    Raises:
        ValueError: if there are fewer samples than one batch holds, or fewer devices than are asked for.
        FloatingPointError: if the loss is no longer finite.
    """
    steps = data.size // fit.batch
    if steps == 0:
        raise ValueError(f"{data.size} training samples do not fill one batch of {fit.batch}: set a smaller batch")
    total = steps * fit.epochs
    step = stepper(loss, fit, total, around)
    moments = optimizer(fit, total, around).init(tree)
    carry = jax.tree.map(jnp.array, (tree, rest, moments))  # copies: the step donates its arguments
    kept = state.load(carry)
    carry, start = (carry, 0) if kept is None else kept
    parts, whole = _spread(fit.devices)
    carry, noise = jax.device_put((carry, jax.random.key(seed)), whole)
    for epoch in range(start, fit.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(data.size)
        losses = []
        for i, (inputs, labels) in enumerate(data.batches(order, fit.batch)):
            index = np.int32(epoch * steps + i)
            *carry, value = step(*carry, *jax.device_put((inputs, labels), parts), noise, index)
            losses.append(value)
            if i % 20 == 19:
                jax.block_until_ready(value)  # the bar tells what is done, not what is queued
            watch.step(epoch * steps + i + 1, total, value)
        mean = float(np.mean(np.asarray(jnp.stack(losses), np.float64)))
        if not np.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch + 1}: lower the learning rate")
        values = {"loss": mean} | ({} if evaluate is None else dict(evaluate(carry[0], carry[1])))
        watch.epoch(
            epoch, values
        )  # before the state: killed between the two, an epoch is done and told again, never untold
        state.save(tuple(carry), epoch + 1)
    trained = tuple(carry[:2])
    return jax.device_put(trained, jax.devices()[0]) if parts is not None else trained
