"""Samples that do not fit in memory, and batches spread over devices: the same trainings."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lowbit.run import Dataset, Fit, Split, from_grain, run
from tests.run import tiny
from tests.run.test_engine import numbers


class Rows:
    """A random access source of the training samples, which counts what is read."""

    def __init__(self, split):
        self.split, self.read = split, []

    def __len__(self):
        return self.split.size

    def __getitem__(self, index):
        self.read.append(int(index))
        return self.split.inputs[index], self.split.labels[index]


def test_a_grain_source_trains_the_same_bits(tmp_path):
    data = tiny.bumps()
    source = Rows(data.train)
    asked = dataclasses.replace(tiny.config, methods=tiny.config.methods[1:], evals=(), train_samples=140)

    def streamed():
        return data._replace(train=from_grain(source, digest="one"))

    run(asked, tmp_path / "memory")
    run(dataclasses.replace(asked, data=streamed), tmp_path / "grain")
    assert numbers(tmp_path / "grain") == numbers(tmp_path / "memory")
    ours, theirs = (tmp_path / f"{name}/seed-0/lsq_w4a4/packed.safetensors" for name in ("grain", "memory"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert max(source.read) == 139
    read = len(source.read)
    run(dataclasses.replace(asked, data=streamed), tmp_path / "grain")
    assert len(source.read) == read  # what is finished reads nothing


def test_batches_are_those_of_samples_in_memory():
    split, order = tiny.bumps().train, np.random.default_rng(0).permutation(150)
    for one, other in zip(
        split.batches(order, 40), from_grain(Rows(split), digest="d").batches(order, 40), strict=True
    ):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])
    assert from_grain(Rows(split), digest="d").first(7).taken(50).size == 7


@pytest.mark.parametrize(
    ("source", "digest", "message"),
    [(iter([]), "d", "source.i."), ([], "d", "needs samples"), ([(1, 2)], "", "digest")],
)
def test_wrong_sources(source, digest, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_grain(source, digest=digest)


def test_samples_are_pairs():
    with pytest.raises(ValueError, match="a sample is a pair"):
        from_grain([np.zeros(3)], digest="d").taken(1)


SPREAD = """
import dataclasses, json, sys
from pathlib import Path
import jax
from lowbit.run import Fit, run, training
from lowbit.run.folder import read_metrics
from tests.run import tiny

seen, made = set(), training.stepper
def stepper(*given):
    step = made(*given)
    def counted(tree, rest, moments, inputs, labels, key, index):
        seen.add((len(inputs.sharding.device_set), inputs.sharding.shard_shape(inputs.shape)[0]))
        return step(tree, rest, moments, inputs, labels, key, index)
    return counted
training.stepper = stepper
fit = Fit(epochs=1, batch=120, devices=int(sys.argv[1]))
asked = dataclasses.replace(tiny.config, fit=fit, evals=(), methods=(dataclasses.replace(tiny.config.methods[1], fit=fit),))
found = run(asked, Path(sys.argv[2]))
assert not found.failed, found.failed
losses = [line["loss"] for line in read_metrics(Path(sys.argv[2])) if line["kind"] == "epoch"]
print(json.dumps([sorted(seen), losses]))
"""


@pytest.mark.slow
def test_batches_spread_over_devices(tmp_path):
    """One step: the loss before it is a mean over 120 samples, summed in another order on four devices."""
    found = {}
    for devices in (1, 4):
        env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        words = [sys.executable, "-c", SPREAD, str(devices), str(tmp_path / str(devices))]
        done = subprocess.run(words, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        found[devices] = json.loads(done.stdout.splitlines()[-1])
    assert [found[devices][0] for devices in (1, 4)] == [[[1, 120]], [[4, 30]]]
    # the float training starts from the same parameters; the quantized one from those of one step, which Adam makes of signs
    np.testing.assert_allclose(found[4][1][0], found[1][1][0], rtol=119 * 2.0**-24)
    # alike but for gradients near 0; a weight near the middle of two levels may take the other: a step of 120 samples' loss
    np.testing.assert_allclose(found[4][1][1], found[1][1][1], rtol=1e-3)


def test_a_batch_splits_into_the_devices():
    with pytest.raises(ValueError, match="does not split into 3 devices"):
        dataclasses.replace(tiny.config, fit=Fit(batch=50, devices=3))
    with pytest.raises(ValueError, match="does not split"):
        dataclasses.replace(tiny.config, fit=Fit(devices=0))


def test_as_many_devices_as_there_are(tmp_path):
    found = run(dataclasses.replace(tiny.config, fit=Fit(batch=50, devices=50), evals=()), tmp_path)
    assert all("fit.devices is 50" in error for row in found.rows for error in row.errors.values())
    assert found.failed


def test_a_split_is_known_by_every_bit():
    split = tiny.bumps().train
    changed = split.inputs.copy()
    changed[3, 4] = np.nextafter(changed[3, 4], 2)
    assert Split(changed, split.labels).digest != split.digest == Dataset("a", "b", split, split).train.digest
