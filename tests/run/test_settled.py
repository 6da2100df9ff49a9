"""Training that goes on with learned widths: it begins where the first ended, keeps its widths, and pays no price."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.quantizers.fracbits import fracbits
from lowbit.run import Fit, Method, Settled
from lowbit.run.engine import run
from lowbit.run.folder import read_metrics

from . import tiny

PRICED = []


def price(plan, params, qstate):
    PRICED.append([row.weight.quantizer.is_hard for row in plan.quantized])
    return jnp.zeros(())


def quantizers(row):
    return lb.lsq(f"w{row.weight.spec.format.bits}/tensor")


FIRST = Method("widths", {"**": fracbits("w5/tensor")}, tiny.FIT, penalty=price)
SETTLED = Settled(Fit(epochs=3, batch=50, lr=1e-2, step_lr=1e-3), quantizers)


def test_training_goes_on_with_the_widths_that_were_learned(tmp_path):
    PRICED.clear()
    methods = (FIRST, dataclasses.replace(FIRST, name="settled", settled=SETTLED))
    results = run(dataclasses.replace(tiny.config, methods=methods, evals=()), tmp_path)
    assert results.failed == {}
    assert {tuple(each) for each in PRICED} == {(False, False)}  # only while widths are learned
    plans = [lb.load(tmp_path / f"seed-0/{name}/packed.safetensors")[0] for name in ("widths", "settled")]
    bits = [[row.weight.spec.format.bits for row in plan] for plan in plans]
    assert bits[0] == bits[1]
    epochs = {}
    for line in read_metrics(tmp_path):
        if line["kind"] == "epoch":
            epochs.setdefault(line["piece"], []).append(line["loss"])
    assert len(epochs["seed-0/settled"]) == tiny.FIT.epochs + SETTLED.fit.epochs
    assert epochs["seed-0/settled"][: tiny.FIT.epochs] == epochs["seed-0/widths"]
    assert (
        np.mean(epochs["seed-0/settled"][tiny.FIT.epochs :]) < epochs["seed-0/widths"][0]
    )  # not from the float network's start
    before = (tmp_path / "seed-0/settled/packed.safetensors").read_bytes()
    for path in (tmp_path / "seed-0/settled").glob("*.json"):
        path.unlink()
    run(dataclasses.replace(tiny.config, methods=methods, evals=()), tmp_path)  # both trainings are read back
    assert (tmp_path / "seed-0/settled/packed.safetensors").read_bytes() == before


def test_settled_needs_a_training_before_it():
    with pytest.raises(ValueError, match="settled is training after quantized training: give it a fit"):
        Method("m", {"**": "w4"}, settled=SETTLED)
