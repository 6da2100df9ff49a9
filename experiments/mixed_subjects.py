"""The networks of the table of mixed plans, with what calibrates, compares and scores them."""

import functools

import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments.data import brown, fashion_mnist, lfw_faces, photographs
from experiments.mixed import Subject
from experiments.mixed_training import fitted, taught
from experiments.models import blazeface, minilm, mobilenet_v2, small_conv
from lowbit.rewrites.batch_norm import fold
from lowbit.run import Model

SHARPNESS = 20.0
"""What cosines are multiplied by to be logits: the scale that sentence encoders are trained with."""


def _batched(x: np.ndarray, size: int) -> list[tuple[np.ndarray]]:
    return [(x[i : i + size],) for i in range(0, len(x), size)]


def mobilenet(calibration: int = 64, inputs: int = 500) -> Subject:
    """Returns MobileNetV2: logits of 1000 classes on crops of unlabelled photographs, top-1 on 200 of 20 labelled ones."""
    data = photographs.load()
    first = data.test.inputs[:1]
    raw = mobilenet_v2.load()
    model = Model(*lb.chain(fold(first))(raw.fn, raw.params, raw.state))
    every = np.arange(500)[:: 500 // inputs][:inputs]
    return Subject(
        model,
        _batched(data.train.taken(calibration).inputs, 8),
        _batched(photographs.agreement()[every], 50),
        photographs.photograph_of("agreement")[every],
        _batched(data.test.inputs, 50),
        lambda y, before: mobilenet_v2.top_1(y) == data.test.labels,
    )


def faces(calibration: int = 64, inputs: int = 500) -> Subject:
    """Returns BlazeFace without its boxes: two logits for each of 896 anchors on crops of photographs, 200 faces or none."""
    raw = blazeface.load(has_boxes=False)
    data = lfw_faces.load()

    def fn(params, state, x):
        score = raw.fn(params, state, x)
        return jnp.concatenate([score, jnp.zeros_like(score)], axis=-1)

    def pixels(part: str, every: np.ndarray) -> np.ndarray:
        return photographs.pixels([photographs.crops(part)[i] for i in every], 128) * 2 - 1

    every = np.arange(500)[:: 500 // inputs][:inputs]
    return Subject(
        Model(fn, raw.params, raw.state),
        _batched(pixels("calibration", np.arange(calibration)), 32),
        _batched(pixels("agreement", every), 50),
        photographs.photograph_of("agreement")[every],
        _batched(data.test.inputs, 50),
        lambda y, before: blazeface.has_face(y) == data.test.labels,
    )


def sentences(calibration: int = 64, inputs: int = 500, length: int = 64, bank: int = 100) -> Subject:
    """Returns MiniLM: its cosines with float's vectors of sentences, times 20, as logits; right: the nearest is float's."""
    raw = minilm.load()
    ids, mask = minilm.tokens(brown.sentences(calibration + bank, first=0), length)
    known = raw.fn(raw.params, raw.state, ids[calibration:], mask[calibration:])

    def fn(params, state, ids, mask):
        return SHARPNESS * (raw.fn(params, state["rest"], ids, mask) @ state["known"].T)

    other, its_mask = minilm.tokens(brown.sentences(inputs, first=1), length)
    asked = [(other[i : i + 50], its_mask[i : i + 50]) for i in range(0, inputs, 50)]
    return Subject(
        Model(fn, raw.params, {"rest": raw.state, "known": known}),
        [(ids[i : i + 32], mask[i : i + 32]) for i in range(0, calibration, 32)],
        asked,
        np.arange(inputs),
        asked,
        lambda y, before: y.argmax(-1) == before.argmax(-1),
    )


def clothes(calibration: int = 256, inputs: int = 500, samples: int = 60_000) -> Subject:
    """Returns the network of the demo, trained in float here: logits of 500 test images, top-1 of all 10,000.

    Args:
        calibration: images for ranges and scores.
        inputs: test images on which logits are compared.
        samples: that it is trained on, in float with labels and quantized without.
    """
    data = fashion_mnist.load()
    train, test = data.train.taken(samples), data.test
    model = fitted(small_conv.build(0), train.inputs, train.labels, epochs=4, batch=128, rate=4e-3, seed=0)
    return Subject(
        model,
        _batched(train.inputs[:calibration], 64),
        _batched(test.inputs[:inputs], 100),
        np.arange(inputs),
        _batched(test.inputs, 1000),
        lambda y, before: y.argmax(-1) == test.labels,
        functools.partial(taught, x=train.inputs, epochs=2, batch=128, rate=2e-3, step_rate=1e-3, seed=0),
    )
