"""Speech in noise, frame by frame: real recordings of five sentences and five short phrases, in noise made here.

The recordings are those of Debian's ``pocketsphinx-testdata`` (BSD-2; the sentences from LibriVox, public domain), 16 kHz.
Nobody has marked speech in them, so labels are made from the clean signal: a frame of 32 ms is speech where its energy is
above `QUIET` (20 dB below) of what the loudest tenth has, or lies between two such frames at most `GAP` apart. The network never sees
the clean signal: every recording stands in pink noise, at least half a second before and after it, at six levels of noise.

Phrases are for training (ranges only), sentences for testing. A sample is two seconds, 64 frames, of magnitude spectra: four
windows of 256 samples a frame, as silero-vad computes them, of 129 bands. The spectra belong to the front end of a device,
not to the network: a power spectrum does not fit 8 bits. Each band is divided by a constant of its own, the largest
magnitude of it in the training part, so that all of them use the 8 bits; the network's first weights take the constants back.
"""

import functools
import itertools
import wave
from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError, cache_folder
from lowbit.run import Dataset, Split

RATE, FRAME, CONTEXT, WINDOW, HOP = 16_000, 512, 64, 256, 128
FRAMES, BANDS, WINDOWS = 64, 129, 4
QUIET, GAP = 0.01, 6
NOISES = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
"""Decibels that the speech is above the noise."""
SYSTEM = Path("/usr/share/pocketsphinx/test/data")
INSTALL = "apt-get install pocketsphinx-testdata"
FILES = {
    "train": tuple(f"cards/{i:03}.wav" for i in range(1, 6)),
    "test": tuple(f"librivox/sense_and_sensibility_01_austen_64kb-{i}.wav" for i in ("0870", "0880", "0890", "0920", "0930")),
}  # fmt: skip


def load() -> Dataset:
    """Returns spectra ``[batch, 64, 4, 129]`` and, per frame, whether it is speech ``[batch, 64]``.

    Raises:
        DataError: if the recordings are not installed.
    """
    train, test = (_part(name) for name in FILES)
    scale = band_scale()
    parts = [Split((s.inputs / scale).astype(np.float32), s.labels) for s in (train, test)]
    return Dataset("speech-in-noise", f"Debian pocketsphinx-testdata in {folder()}", *parts)


@functools.cache
def band_scale() -> np.ndarray:
    """Returns the constant of every band ``[129]``: its largest magnitude in the training part."""
    return _part("train").inputs.max(axis=(0, 1, 2)).astype(np.float32)


@functools.cache
def _part(name: str) -> Split:
    spectra, labels = [], []
    for i, file in enumerate(FILES[name]):
        speech = recording(folder() / file)
        speech = np.pad(speech, (RATE // 2, RATE // 2))
        speech = np.pad(speech, (0, -len(speech) % (FRAME * FRAMES)))
        marks = is_speech(speech)
        level = np.sqrt(np.mean(speech.reshape(-1, FRAME)[marks] ** 2))
        for j, decibels in enumerate(NOISES):
            noise = pink(len(speech), seed=100 * i + j) * level * 10.0 ** (-decibels / 20)
            found = spectrum(speech + noise)
            spectra.append(found.reshape(-1, FRAMES, WINDOWS, BANDS))
            labels.append(marks.reshape(-1, FRAMES).astype(np.int32))
    return Split(np.concatenate(spectra), np.concatenate(labels))


def folder() -> Path:
    """Returns where the recordings are.

    Raises:
        DataError: if they are not installed.
    """
    for folder in (cache_folder() / "pocketsphinx", SYSTEM):
        if all((folder / file).is_file() for files in FILES.values() for file in files):
            return folder
    raise DataError(
        f"the recordings of pocketsphinx-testdata are not in {SYSTEM}: {INSTALL}, or unpack the package and put what its "
        f"{SYSTEM} holds into {cache_folder() / 'pocketsphinx'}"
    )


def recording(path: Path) -> np.ndarray:
    """Returns a 16 kHz recording as float64 in [-1, 1].

    Raises:
        DataError: if it is something else.
    """
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise DataError(f"{path} is not a 16 kHz recording of one channel in 16 bits: {INSTALL}")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768.0


def is_speech(clean: np.ndarray) -> np.ndarray:
    """Returns per frame whether a clean recording has speech there."""
    energy = np.mean(clean.reshape(-1, FRAME) ** 2, axis=1)
    loud = energy > QUIET * np.quantile(energy, 0.9)
    at = np.flatnonzero(loud)
    for a, b in itertools.pairwise(at):
        if b - a <= GAP:
            loud[a:b] = True
    return loud


def pink(length: int, *, seed: int) -> np.ndarray:
    """Returns noise of root mean square 1 whose power falls with the frequency, from 50 Hz up."""
    white = np.random.default_rng(seed).normal(size=length)
    frequency = np.fft.rfftfreq(length, 1 / RATE)
    shaped = np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.maximum(frequency, 50.0)), length)
    return shaped / np.sqrt(np.mean(shaped**2))


def spectrum(signal: np.ndarray) -> np.ndarray:
    """Returns magnitudes ``[frames, 4, 129]``: of a frame and the 64 samples before it, the end mirrored by 64 samples."""
    padded = np.pad(signal, (CONTEXT, 0))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME + CONTEXT)[::FRAME]
    frames = np.pad(frames, ((0, 0), (0, CONTEXT)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(frames, WINDOW, axis=1)[:, ::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    return np.abs(np.fft.rfft(windows * hann, axis=-1))


def always_speech(x: np.ndarray) -> np.ndarray:
    """Returns outputs ``[batch, 64]`` that say speech of every frame: what a detector must beat."""
    return np.ones(x.shape[:2], np.float32)
