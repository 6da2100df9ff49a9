"""Networks of keras.applications on the JAX backend, tiny where they can be, with random weights."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from .case import Case, random, values


def _case(make: Callable[[], Any], size: int) -> Case:
    model = make()
    params = random({v.path: v.value for v in model.trainable_variables})
    names = [v.path for v in model.trainable_variables]
    state = [random({v.path: v.value})[v.path] for v in model.non_trainable_variables]

    def fn(params: Any, x: Any) -> Any:
        return model.stateless_call([params[name] for name in names], state, x, training=False)[0]

    return Case(fn, params, (values(1, 2, size, size, 3),))


def _short() -> Iterator[tuple[str, Callable[..., Any], int]]:
    """Architectures with a block of every kind, not all repetitions of it: what keras.applications makes its networks with."""
    every = keras.src.applications
    yield "NASNet", partial(every.nasnet.NASNet, penultimate_filters=96, num_blocks=1, stem_block_filters=4), 32
    yield "DenseNet", partial(every.densenet.DenseNet, blocks=[2, 1, 1, 1]), 32
    yield "EfficientNet", partial(every.efficientnet.EfficientNet, 0.25, 0.25, 32), 32
    name = "efficientnetv2-b0"  # says which blocks
    yield "EfficientNetV2", partial(every.efficientnet_v2.EfficientNetV2, 0.25, 0.2, 32, name=name), 32
    widths = {"depths": [1, 1, 1, 1], "projection_dims": [8, 16, 16, 24]}
    yield "ConvNeXt", partial(every.convnext.ConvNeXt, **widths), 32

    def stack(x: Any) -> Any:
        x = every.resnet.stack_residual_blocks_v2(x, 8, 2, name="conv2")
        return every.resnet.stack_residual_blocks_v2(x, 16, 2, stride1=1, name="conv3")

    yield "ResNetV2", partial(every.resnet.ResNet, stack, True, True), 32


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yields names, and what makes the models."""
    models, plain = keras.applications, {"weights": None, "classes": 4}
    whole = [
        ("MobileNet", partial(models.MobileNet, alpha=0.25), 32),
        ("MobileNetV2", partial(models.MobileNetV2, alpha=0.35), 32),
        *_short(),
        ("MobileNetV3Small", partial(models.MobileNetV3Small, include_preprocessing=False), 32),
        ("Xception", models.Xception, 71),
        ("InceptionV3", models.InceptionV3, 75),
    ]
    for name, make, size in whole:
        yield name, partial(_case, partial(make, **{**plain, "input_shape": (size, size, 3)}), size)
