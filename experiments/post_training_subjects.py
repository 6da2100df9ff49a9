"""The networks of the post-training table with what calibrates and scores them."""

import functools
from typing import Any

import numpy as np

import lowbit as lb
from experiments.data import brown, lfw_faces, photographs, tiny_inputs
from experiments.models import blazeface, minilm, mlperf_tiny, mobilenet_v2
from experiments.post_training import Network, Plan, PostTraining, Subject, interval
from lowbit.rewrites.batch_norm import fold
from lowbit.run import Model


def _batched(x: np.ndarray, size: int) -> list[tuple[np.ndarray]]:
    return [(x[i : i + size],) for i in range(0, len(x), size)]


def _folded(model: Model, x: np.ndarray) -> Model:
    return Model(*lb.chain(fold(x))(model.fn, model.params, model.state))


def _decibels(outputs: np.ndarray, before: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(before**2) / max(np.sum((outputs - before) ** 2), 1e-30)))


def mobilenet(calibration: int = 128, agreement: int = 100) -> Subject:
    """Returns MobileNetV2: top-1 of 200 crops of 20 labelled photographs, agreement on crops of others.

    Args:
        calibration: crops, of photographs that nothing is scored on.
        agreement: crops of unlabelled photographs, scored after the labelled ones.
    """
    data = photographs.load()
    labels, photo = data.test.labels, photographs.photograph_of("scored")
    others = photographs.agreement()[:: 500 // agreement][:agreement]
    model = _folded(mobilenet_v2.load(), data.test.inputs[:1])

    def score(outputs: np.ndarray, before: np.ndarray) -> dict[str, float]:
        right = mobilenet_v2.top_1(outputs[:200]) == labels
        low, high = interval(100.0 * right, photo)
        rest, base = outputs[200:], before[200:]
        return {
            "top-1 %": 100 * float(np.mean(right)),
            "low": low,
            "high": high,
            "agreement %": 100 * float(np.mean(rest.argmax(-1) == base.argmax(-1))),
            "logits dB": _decibels(rest, base),
        }

    inputs = _batched(np.concatenate([data.test.inputs, others]), 50)
    return Subject(model, _batched(data.train.taken(calibration).inputs, 8), inputs, score)


def faces(calibration: int = 256) -> Subject:
    """Returns BlazeFace: 200 labelled crops; calibration sees photographs that are none of them."""
    data = lfw_faces.load()
    others = photographs.pixels(photographs.crops("calibration")[:calibration], 128) * 2 - 1

    def score(outputs: np.ndarray, before: np.ndarray) -> dict[str, float]:
        right = 100.0 * (blazeface.has_face(outputs) == data.test.labels)
        low, high = interval(right, np.arange(len(right)))
        return {"right %": float(np.mean(right)), "low": low, "high": high, "outputs dB": _decibels(outputs, before)}

    return Subject(blazeface.load(), _batched(others, 32), _batched(data.test.inputs, 50), score)


def tiny(name: str, calibration: int = 512, scored: int = 2000) -> Subject:
    """Returns one of MLPerf Tiny's: agreement with float's class, or the correlation of anomaly scores."""
    seen, asked = tiny_inputs.load(name, calibration, scored)

    def score(outputs: np.ndarray, before: np.ndarray) -> dict[str, float]:
        if name == "anomaly_detection":
            ours, theirs = (np.mean((y - asked) ** 2, axis=(1, 2, 3)) for y in (outputs, before))
            return {"correlation": float(np.corrcoef(ours, theirs)[0, 1]), "outputs dB": _decibels(outputs, before)}
        same = 100.0 * (outputs.argmax(-1) == before.argmax(-1))
        low, high = interval(same, np.arange(len(same)))
        return {"agreement %": float(np.mean(same)), "low": low, "high": high, "logits dB": _decibels(outputs, before)}

    model = _folded(mlperf_tiny.load(name), seen[:1])
    return Subject(model, _batched(seen, 32), _batched(asked, 250), score)


def sentences(calibration: int = 256, scored: int = 300, length: int = 64) -> Subject:
    """Returns MiniLM: mean cosine to float's vectors on sentences of texts that calibration has not seen.

    Calibration reads three sentences at a time, cut to the length: of single ones more than half of the rows would be padding.
    """

    def batches(count: int, first: int, together: int) -> list[tuple[Any, ...]]:
        alone = brown.sentences(count * together, first=first)
        ids, mask = minilm.tokens([" ".join(alone[i::count]) for i in range(count)], length)
        return [(ids[i : i + 32], mask[i : i + 32]) for i in range(0, count, 32)]

    def score(outputs: np.ndarray, before: np.ndarray) -> dict[str, float]:
        cosines = np.sum(outputs * before, axis=-1) / np.maximum(np.linalg.norm(outputs, axis=-1), 1e-12)
        low, high = interval(cosines, np.arange(len(cosines)))
        return {"cosine": float(np.mean(cosines)), "low": low, "high": high}

    return Subject(minilm.load(), batches(calibration, 0, 3), batches(scored, 1, 1), score)


def on_auto_encoder(name: str, *recipes: str, calibration: int) -> PostTraining:
    """Returns recipes beside each other on MLPerf Tiny's auto-encoder, with 4-bit weights and 8-bit inputs.

    Args:
        name: of the config.
        *recipes: that are run.
        calibration: inputs.
    """
    subject = functools.partial(tiny, "anomaly_detection", calibration)
    plan = Plan("W4A8", {"**": "w4,a8"}, None, recipes)
    return PostTraining(name, (Network("anomaly_detection", "auto-encoder", subject, "correlation", 4, (plan,)),))


TINY = {name: functools.partial(tiny, name) for name in mlperf_tiny.NAMES}
