"""Networks of keras.applications on the JAX backend, tiny where they can be, with random weights."""

import os
from collections.abc import Callable, Iterator
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


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yields names, and what makes the models."""
    models = keras.applications
    plain = {"weights": None, "classes": 4}
    for name, size, options in (
        ("MobileNet", 32, {"alpha": 0.25}), ("MobileNetV2", 32, {"alpha": 0.35}),
        ("MobileNetV3Small", 32, {"include_preprocessing": False}), ("EfficientNetB0", 32, {}), ("EfficientNetV2B0", 32, {}),
        ("NASNetMobile", 32, {}), ("DenseNet121", 32, {}), ("ResNet50V2", 32, {}), ("ConvNeXtTiny", 32, {}),
        ("Xception", 71, {}), ("InceptionV3", 75, {}),
    ):  # fmt: skip
        make = lambda name=name, size=size, options=options: getattr(models, name)(  # noqa: E731
            **plain, **options, input_shape=(size, size, 3)
        )
        yield name, lambda make=make, size=size: _case(make, size)
