"""Every config file loads, and its rules fit its network; every quantizer has its note and a config. Files are found, not listed."""

import dataclasses
import functools
import importlib
import json
import pkgutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import lowbit as lb
import lowbit.quantizers
from experiments import configs
from experiments.data import mnist1d
from experiments.models import blazeface, conv_1d, small_conv
from lowbit.run import Experiment, Suite

ROOT = Path(__file__).parents[2]
NAMES = sorted(module.name for module in pkgutil.iter_modules(configs.__path__))
QUANTIZERS = sorted(module.name for module in pkgutil.iter_modules(lowbit.quantizers.__path__))
INPUTS = {conv_1d.build: (40, 1), small_conv.build: (28, 28, 1), blazeface.load: (128, 128, 3)}


def load(name: str):
    return importlib.import_module(f"experiments.configs.{name}")


CONFIGS = [n for n in NAMES if isinstance(load(n).config, Experiment) and load(n).config.model in INPUTS]
RESULTS = ROOT / "experiments" / "results"
SMALL = [n for n in CONFIGS if load(n).config.data is mnist1d.load and (RESULTS / f"{n}.json").is_file()]


@functools.cache
def model(build):
    """The function of a network, and the shapes of its parameters and state: binding needs no numbers."""
    found = []

    def shapes():
        network = build(0)
        found.append(network.fn)
        return network.params, network.state

    params, state = jax.eval_shape(shapes)
    return found[0], params, state


@pytest.mark.parametrize("name", NAMES)
def test_config_is_whole(name):
    module = load(name)
    assert dataclasses.is_dataclass(module.config)  # a Config, or what a benchmark measures
    assert isinstance(module.config, Experiment | Suite) or callable(module.run)
    assert module.config.name == name
    assert f"lowbit run experiments/configs/{name}.py" in module.__doc__
    assert "minute" in module.__doc__


@pytest.mark.parametrize("name", SMALL)
def test_documents_say_what_was_found(name):
    """Every row of a result stands in its config's docstring, or in the note that is called as the config."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    note = ROOT / "papers" / f"{name}.md"
    text = " ".join((note.read_text() if note.is_file() else load(name).__doc__).split())
    assert set(result["rows"]) == {"float", *(method.name for method in load(name).config.methods)}
    assert len(result["seeds"]) == len(result["rows"]["float"]["values"])
    for row in result["rows"].values():
        error = row["half"] if "half" in row else row["spread"]
        assert f"{row['mean']:.2f} ± {error:.2f}" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_rules_fit_the_network(name):
    """The last method is bound: that finds a glob that matches nothing. Bits and options were checked on loading."""
    config = load(name).config
    x = jax.ShapeDtypeStruct((2, *INPUTS[config.model]), jnp.float32)
    fn, params, state = model(config.model)
    assert lb.bind(fn, config.methods[-1].rules, params, state, x).quantized


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantizer_has_a_note_and_a_config(name):
    assert (ROOT / "papers" / f"{name}.md").is_file()
    assert [config for config in NAMES if config.startswith(f"{name}_")]
