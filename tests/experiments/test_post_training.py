"""The suite behind the table of post-training methods: pieces, resuming, intervals, and what the table says of what is missing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.post_training import Network, Plan, Subject, experiment, suite
from experiments.post_training_table import markdown
from lowbit.run import Dataset, Model, bootstrap, engine, run_suite, unlabelled


def data() -> Dataset:
    x = np.random.default_rng(0).normal(size=(256, 12)).astype(np.float32)
    gain = np.random.default_rng(1).uniform(0.5, 2.0, (256, 1)).astype(np.float32)
    return unlabelled("normal", (x, gain), calibrated=128)


def product(params, state, x, gain):
    return jax.nn.relu((x * gain) @ params["first"]) @ params["second"]


def drawn(seed: int) -> Model:
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.standard_t(4, size=(12, 12)), jnp.float32) for k in ("first", "second")}
    return Model(product, params, {})


def decibels(outputs, before, labels):
    return {"dB": float(10 * np.log10(np.sum(before**2) / np.sum((outputs - before) ** 2 + 1e-30)))}


def missing() -> Dataset:
    raise FileNotFoundError("other.bin is not there: pip install other")


SMALL = Network(
    "small", "Small", Subject(data, drawn, decibels, 128, 100), "dB", 1,
    (Plan("W4", {"**": "w4"}, 100.0, ("rtn", "gptq")),),
)  # fmt: skip
OTHER = dataclasses.replace(
    SMALL, name="other", title="Other", subject=Subject(missing, drawn, decibels, 128, 128),
    plans=(Plan("W3", {"**": "w3"}, 5.0, ("rtn",)),),
)  # fmt: skip
CONFIG = suite("post_training", SMALL, OTHER)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    found = run_suite(CONFIG, folder)
    assert [each.failed for each in found] == [{}]
    return folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_run_scores_what_is_executed(first):
    found = summary(first)
    small, other = found["networks"]
    got = small["plans"][0]["recipes"]
    assert got["gptq"]["score"] > got["rtn"]["score"] + 1
    assert got["rtn"]["bits_per_weight"] == pytest.approx(4 + 32 / 12)
    assert "commit" in got["rtn"]
    assert other["float"] is None
    assert other["plans"][0]["recipes"] == {}
    assert found["absent"] == {"other": "other.bin is not there: pip install other"}
    report = json.loads((first / "small/seed-0/W4-gptq/report.json").read_text())
    assert [line["path"] for line in report["operations"]] == ["first", "second"]

    # The score by hand: rounded to nearest, per output, in float64; the last of three calls is filled up.
    model, inputs = drawn(0), data().test.inputs
    x, gain = (each.astype(np.float64) for each in inputs)
    true, rounded = ({k: np.asarray(w, np.float64) for k, w in model.params.items()} for _ in range(2))
    for k, w in true.items():
        scale = np.abs(w).max(axis=0) / 7
        rounded[k] = scale * np.clip(np.round(w / scale), -8, 7)
    whole, less = (np.maximum((x * gain) @ p["first"], 0) @ p["second"] for p in (true, rounded))
    assert got["rtn"]["score"] == pytest.approx(decibels(less, whole, None)["dB"], abs=1e-3)

    text = markdown(found)
    assert "| Small, dB, float 300.0 | W4 | 6.67 |" in text.replace(
        f"float {small['float']['score']:.1f}", "float 300.0"
    )
    assert "| Other, dB | W3 | - | not measured | - | - | - | - | - | - | 5 |" in text
    assert "*" not in text.split("\n\n")[0]  # a bar of 100 dB is reached by nobody


def test_a_recipe_more_is_a_piece_more(first, monkeypatch):
    """What is there is taken, and a plan whose rules changed has no numbers of its earlier ones: they are not asked for."""
    made, measured = [], engine.measure_piece
    monkeypatch.setattr(engine, "measure_piece", lambda piece: made.append(piece.name) or measured(piece))
    before = summary(first)["networks"][0]["plans"][0]["recipes"]
    run_suite(CONFIG, first)
    assert made == []
    more = dataclasses.replace(SMALL, plans=(dataclasses.replace(SMALL.plans[0], recipes=("rtn", "gptq", "search")),))
    run_suite(suite("post_training", more), first)
    assert made == ["seed-0/W4-search"]
    found = summary(first)["networks"][0]["plans"][0]["recipes"]
    assert {name: found[name] for name in before} == before
    other = dataclasses.replace(SMALL, plans=(dataclasses.replace(SMALL.plans[0], rules={"**": "w5"}),))
    run_suite(suite("post_training", other), first, only=["W4-rtn"])
    assert made[1:] == ["seed-0/W4-rtn"]
    assert summary(first)["networks"][0]["plans"][0]["recipes"].keys() == {"rtn"}


def test_a_network_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--only samll fits no piece; there are .* in small, other"):
        run_suite(CONFIG, tmp_path, only=["small", "samll"])


def test_names_of_plans_become_names_of_folders():
    plan = Plan("W4 g32 (the file's own blocks)", {"**": "w4/g32"}, None, ("rtn",))
    (method,) = experiment(dataclasses.replace(SMALL, plans=(plan,))).methods
    assert method.name == "W4_g32_the_file_s_own_blocks-rtn"


def test_intervals_count_units_and_not_samples():
    """Ten crops of a photograph, all alike, are one observation: the interval is that of 20 numbers, by its normal law."""
    rng = np.random.default_rng(1)
    values = np.repeat((rng.uniform(size=20) < 0.7).astype(float), 10)
    low, high = bootstrap(values, np.repeat(np.arange(20), 10))
    deviation = np.sqrt(values.mean() * (1 - values.mean()) / 20)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
