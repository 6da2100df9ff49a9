"""`signround` on one layer in float64: never worse than its start, and near GPTQ with descent."""

import dataclasses

import numpy as np

import lowbit as lb
from lowbit.recipes.lookup import named


def test_signs_of_gradients_come_near_gptq_and_are_never_worse_than_nearest():
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(512, 32)) @ rng.normal(size=(32, 32))).astype(np.float32)
    w = rng.normal(size=(32, 24)).astype(np.float32)
    h = x.astype(np.float64).T @ x / len(x)
    lost = {}
    plain = dataclasses.replace(named("signround").solver, value="none", rounds=0)
    recipes = {
        "rtn": named("rtn"), "gptq": named("gptq"), "signround": named("signround"),
        "alone": dataclasses.replace(named("signround"), name="alone", solver=plain),
    }  # fmt: skip
    for name, recipe in recipes.items():
        qparams, _, _ = lb.quantize(lambda p, x: x @ p["w"], {"w": w}, {"**": "w4"}, batches=[(x,)], recipe=recipe)
        off = np.asarray(qparams.weights()["w"].dequantize(), np.float64) - w
        lost[name] = np.einsum("kn,kj,jn->n", off, h, off)
    damped = 1.02 * lost["rtn"]  # the loss that is descended on has one percent of the mean moment on its diagonal
    assert np.all(lost["alone"] <= damped)
    # Without searched scales and descent, between nearest and what feedback leaves of it by its law, a half here: ten draws of
    # everything leave 0.69 to 0.84 of nearest, this one 0.71, and another order of sums turns a few signs.
    assert lost["alone"].sum() < 0.75 * lost["rtn"].sum()
    assert lost["signround"].sum() < 1.15 * lost["gptq"].sum()  # 1.02 to 1.17 over the same draws, 1.08 here
