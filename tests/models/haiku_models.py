"""Networks of Haiku."""

from collections.abc import Callable, Iterator
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from .case import Case, random, tokens, values


def _case(make: Callable[..., Any], *args: Any, has_norms: bool = False) -> Case:
    """The case of a network; one with batch norms is asked for in training first, which is what makes their averages."""
    model = hk.without_apply_rng(hk.transform_with_state(make))
    first, later = ({"is_training": True}, {"is_training": False}) if has_norms else ({}, {})
    params, state = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), *args, **first))
    state = random(state)
    return Case(lambda params, *args: model.apply(params, state, *args, **later)[0], random(params), args)


def _resnet(x: Any, is_training: bool) -> Any:
    blocks = {"blocks_per_group": (1, 1, 1, 1), "channels_per_group": (8, 8, 8, 8), "bottleneck": False}
    first = {"output_channels": 8}
    net = hk.nets.ResNet(num_classes=4, **blocks, use_projection=(False, True, True, True), initial_conv_config=first)
    return net(x, is_training)


def _mobile_net(x: Any, is_training: bool) -> Any:
    return hk.nets.MobileNetV1((1, 2), (8, 16), num_classes=4)(x, is_training)


def _recurrent(core: Callable[[], Any]) -> Callable[[Any], Any]:
    def make(x: Any) -> Any:
        inside = core()
        out, _ = hk.dynamic_unroll(inside, x, inside.initial_state(x.shape[1]))
        return hk.Linear(4)(out)

    return make


def _transformer(ids: Any) -> Any:
    x = hk.Embed(90, 16)(ids)
    for _ in range(2):
        h = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        x = x + hk.MultiHeadAttention(2, 8, w_init=hk.initializers.VarianceScaling(1.0), model_size=16)(h, h, h)
        h = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        x = x + hk.Linear(16)(jax.nn.gelu(hk.Linear(32)(h)))
    return hk.Linear(90)(x)


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yields names, and what makes the models."""
    image = values(1, 2, 32, 32, 3)
    yield "MLP", lambda: _case(lambda x: hk.nets.MLP([16, 4])(x), values(2, 3, 8))
    yield "ResNet", lambda: _case(_resnet, image, has_norms=True)
    yield "MobileNetV1", lambda: _case(_mobile_net, image, has_norms=True)
    yield "LSTM", lambda: _case(_recurrent(lambda: hk.LSTM(6)), values(3, 5, 2, 8))
    yield "GRU", lambda: _case(_recurrent(lambda: hk.GRU(6)), values(3, 5, 2, 8))
    yield "VanillaRNN", lambda: _case(_recurrent(lambda: hk.VanillaRNN(6)), values(3, 5, 2, 8))
    yield "transformer", lambda: _case(_transformer, tokens(2, 7))
    yield (
        "depthwise",
        lambda: _case(lambda x: hk.Linear(4)(jnp.mean(jax.nn.relu(hk.DepthwiseConv2D(2, 3)(x)), (1, 2))), image),
    )
    yield (
        "Conv2DTranspose",
        lambda: _case(lambda x: hk.Conv2D(3, 3)(jax.nn.relu(hk.Conv2DTranspose(8, 3, 2)(x))), image),
    )
