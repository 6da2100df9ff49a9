"""Inputs for the four networks of MLPerf Tiny: crops of photographs, spectra of recorded speech in noise.

The benchmark's own test sets are in no package, so networks are compared with their float selves on inputs of the right
kind: photographs of `experiments.data.photographs` at 32 and 96 pixels, and the sentences and phrases of
`experiments.data.speech` as mel spectra of the two networks' shapes. Calibration and scoring share no photograph and no
recording.
"""

import itertools

import numpy as np

from experiments.data import photographs, speech

BANDS = {"keyword_spotting": 10, "anomaly_detection": 128}
WINDOW = {"keyword_spotting": 480, "anomaly_detection": 1024}
HOP = {"keyword_spotting": 320, "anomaly_detection": 512}
FRAMES = {"keyword_spotting": 50, "anomaly_detection": 5}


def load(name: str, calibration: int = 512, scored: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs for calibration and for scoring.

    Args:
        name: one of `experiments.models.mlperf_tiny.NAMES`.
        calibration: how many of the first kind.
        scored: how many of the second.

    Raises:
        DataError: where photographs or recordings are not installed.
    """
    if name in BANDS:
        return _spectra(name, "train", calibration), _spectra(name, "test", scored)
    side = 32 if name == "image_classification" else 96
    made = []
    for part, count in (("calibration", calibration), ("agreement", scored)):
        listed = photographs.crops(part)
        draw = np.random.default_rng(count)
        chosen = [_within(listed[i % len(listed)], draw) for i in range(count)]
        values = photographs.pixels(chosen, side) * 255
        made.append((values - 128) / 128 if side == 32 else values)
    return made[0].astype(np.float32), made[1].astype(np.float32)


def _within(crop: photographs.Crop, draw: np.random.Generator) -> photographs.Crop:
    """A random part of a crop: half of its side at least."""
    side = crop.side * draw.uniform(0.5, 1.0)
    left, top = (at + draw.uniform(0, crop.side - side) for at in (crop.left, crop.top))
    return crop._replace(left=left, top=top, side=side)


def _spectra(name: str, part: str, count: int) -> np.ndarray:
    """Log mel spectra ``[count, frames, bands, 1]`` of stretches of the recordings; words scaled to 0..255, sounds in dB."""
    window, hop, frames = WINDOW[name], HOP[name], FRAMES[name]
    length = window + hop * (frames - 1)
    draw = np.random.default_rng(count)
    clips = []
    for file, (i, decibels) in itertools.product(speech.FILES[part], enumerate(speech.NOISES)):
        clean = speech.recording(speech.folder() / file)
        level = np.sqrt(np.mean(clean**2)) * 10.0 ** (-decibels / 20)
        clips.append(clean + speech.pink(len(clean), seed=i) * level)
    stretches = []
    for i in range(count):
        clip = clips[i % len(clips)]
        start = draw.integers(0, max(1, len(clip) - length))
        stretches.append(np.pad(clip[start : start + length], (0, max(0, length - len(clip[start:])))))
    cut = np.lib.stride_tricks.sliding_window_view(np.stack(stretches), window, axis=1)[:, ::hop]
    power = np.abs(np.fft.rfft(cut * np.hanning(window), axis=-1)) ** 2
    found = 10 * np.log10(power @ _mel(window, BANDS[name]) + 1e-10)
    if name == "keyword_spotting":
        low, high = (np.quantile(found, q, axis=(1, 2), keepdims=True) for q in (0.05, 1.0))
        found = 255 * np.clip((found - low) / np.maximum(high - low, 1.0), 0.0, 1.0)
    return found[..., None].astype(np.float32)


def _mel(window: int, bands: int) -> np.ndarray:
    """Triangles on the mel scale up to 4 kHz for words and to 8 kHz for sounds, ``[bins, bands]``."""
    top = 4000.0 if bands == 10 else 8000.0
    edges = 700 * (np.expm1(np.linspace(0, np.log1p(top / 700), bands + 2)))
    bins = np.fft.rfftfreq(window, 1 / speech.RATE)[:, None]
    rise = (bins - edges[:-2]) / np.maximum(edges[1:-1] - edges[:-2], 1e-6)
    fall = (edges[2:] - bins) / np.maximum(edges[2:] - edges[1:-1], 1e-6)
    return np.maximum(0.0, np.minimum(rise, fall))
