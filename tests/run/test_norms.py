"""Networks with batch norms, trained quantized with these folded in, through the engine to a compiler: linen's and nnx's."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowbit as lb
from lowbit.core.paths import flatten
from lowbit.export.reading import read_bundle
from lowbit.run import Fit, Method, from_linen, from_nnx, iree, run
from tests.run import tiny


class _Linen(nn.Module):
    is_training: bool = False

    @nn.compact
    def __call__(self, x):
        h = nn.BatchNorm(use_running_average=not self.is_training, name="norm")(nn.Dense(12, name="a")(x))
        return nn.Dense(5, name="c")(nn.Dropout(0.1, deterministic=not self.is_training)(nn.relu(h)))


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.a, self.norm = nnx.Linear(20, 12, rngs=rngs), nnx.BatchNorm(12, rngs=rngs)
        self.drop, self.c = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        return self.c(self.drop(nnx.relu(self.norm(self.a(x)))))


def linen_model(seed):
    variables = _Linen().init(jax.random.key(seed), jnp.zeros((2, 20)))
    return from_linen(_Linen(), variables, training=_Linen(is_training=True))


def nnx_model(seed):
    """Its state holds the keys of its dropout beside the running averages."""
    return from_nnx(_Nnx(nnx.Rngs(seed)))


FIT = Fit(epochs=1, batch=50, lr=1e-2, step_lr=1e-3)
CONFIG = dataclasses.replace(
    tiny.config,
    fit=FIT,
    methods=(Method("frozen", {"**": lb.lsq("w4,a8")}, FIT, freeze_norms=2),),
    evals=(iree(samples=20),),
)


@pytest.mark.parametrize("model", [linen_model, nnx_model])
def test_norms_frozen_in_training_are_compiled_without_their_statistics(model, tmp_path):
    """The compiled module takes the signals alone and gives what is executed; both are what numpy makes of the file."""
    results = run(dataclasses.replace(CONFIG, name="norms", model=model), tmp_path / "run")
    assert results.failed == {}
    piece = results.folder.path / "seed-0/frozen"
    found = json.loads((piece / "result.json").read_text())["result"]
    assert found["difference"]["iree"] == {"max": 0.0, "share": 0.0}
    assert found["difference"]["execute"] == {"max": 0.0, "share": 0.0}
    assert len(read_bundle(piece / "export").manifest["inputs"]) == 1
    _, qparams = lb.load(piece / "packed.safetensors")
    data = tiny.bumps().test
    h = np.maximum(_layer(qparams, "a", "shift/a/kernel", data.inputs), 0.0)
    right = (_layer(qparams, "c", "c/bias", h).argmax(-1) == data.labels).mean()
    assert found["metric"]["execute"] == pytest.approx(100 * right, abs=1e-6)


class _Dropping(nnx.Module):
    def __init__(self, rngs):
        self.a, self.drop, self.c = (
            nnx.Linear(20, 12, rngs=rngs),
            nnx.Dropout(0.1, rngs=rngs),
            nnx.Linear(12, 5, rngs=rngs),
        )

    def __call__(self, x):
        return self.c(self.drop(nnx.relu(self.a(x))))


def test_integers_refuse_a_training_that_computes_more_than_is_served(tmp_path):
    """Before anything is trained, with the line of the model that stands in the way."""
    methods = (Method("whole", {"**": "w8,a8"}, FIT, integer=True),)
    config = dataclasses.replace(
        CONFIG, name="more", model=lambda seed: from_nnx(_Dropping(nnx.Rngs(seed))), methods=methods, evals=()
    )
    with pytest.raises(ValueError, match=r"(?s)whole: integer=True: in training .*select_n \(test_norms\.py:\d+"):
        run(config, tmp_path)
    assert not (tmp_path / "seed-0").exists()


def _layer(qparams, name, shift, x):
    """A dense layer on its packed weights, in float64."""
    weight, state = qparams.weights()[f"{name}/kernel"], qparams.sites[f"{name}/kernel"]["input"]
    paths, values, _ = flatten(qparams.params)
    bias = np.asarray(values[paths.index(shift)], np.float64)
    scale = np.float64(np.asarray(state["scale"]).item())
    zero = np.float64(np.asarray(state.get("zero", 0)).item())
    codes = np.asarray(weight.unpacked_codes(), np.float64)
    assert np.abs(codes).max() <= 8
    levels = np.clip(np.round(np.asarray(x, np.float64) / scale) + zero, -128, 127) - zero
    return levels @ (codes * np.asarray(weight.scale, np.float64)) * scale + bias
