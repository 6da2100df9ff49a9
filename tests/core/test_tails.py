"""Values that no sample holds: rules that weigh errors count them, as float64 numpy over all values does."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.clipping import Entropy, Octav, Percentile
from lowbit.core.ranges import MSE
from lowbit.core.searching import Searched
from lowbit.core.spec import Operand
from lowbit.core.statistics import Sample
from lowbit.core.tails import Ends, drawn
from lowbit.quantizers.rtn import rtn
from tests.core.test_sample import folded


def finished(rule, batches, spec):
    operand = Operand(batches[0].shape, contract=(1,))
    stats = {}
    for statistic in rule.needs(operand, spec):
        state = statistic.init(operand)
        for x in batches:
            state = statistic.update(state, jnp.asarray(x, jnp.float32), operand)
        stats[statistic.name] = statistic.finish(state)
    return stats, operand


def massive():
    """Two million normal values and 24 that are 60: so rare that a sample of 16,384 has a fifth of one of them."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(500, 1000)).astype(np.float32) for _ in range(4)]
    for x in batches:
        x.reshape(-1)[rng.choice(x.size, 6, replace=False)] = 60.0
    return batches


def squared_error(x, scale, zero, low, high):
    codes = np.clip(np.round(x / scale) + zero, low, high)
    return np.sum(((codes - zero) * scale - x) ** 2)


@pytest.mark.parametrize("text", ["a8", "a8/sym"])
def test_mse_counts_what_a_sample_misses(text):
    """Within a hundredth of the best of 50 fractions of the range, judged by all values; a sample alone loses half as much again."""
    spec = rtn(f"w8,{text}").input.spec
    batches = massive()
    every = np.concatenate(batches).astype(np.float64).ravel()
    low, high = spec.format.low, spec.format.high

    def loss(rule):
        stats, operand = finished(rule, batches, spec)
        scale, zero = rule.of_stats(stats, operand, spec)
        return squared_error(
            every, np.float64(scale.item()), 0.0 if zero is None else np.float64(zero.item()), low, high
        )

    tried = []
    for fraction in np.linspace(0.02, 1.0, 50):
        a, b = every.min() * fraction, every.max() * fraction
        step = max(-a, b) / high if spec.symmetric else (b - a) / (high - low)
        tried.append(squared_error(every, step, 0.0 if spec.symmetric else np.round(low - a / step), low, high))
    assert loss(MSE()) <= 1.01 * min(tried)
    assert loss(MSE(ends=0)) > 1.5 * min(tried)


def test_rules_that_clip_count_what_a_sample_misses():
    """What they find from statistics is what they find from all values at once: 24 of two million are beyond all others."""
    batches = massive()
    rules = ((Searched(), "a8/sym"), (Octav(), "a8/sym"), (Octav(), "a8"), (Entropy(256, 16), "a8/sym"))
    tails = ((Percentile(percent), text) for percent in (99.995, 99.999, 100.0) for text in ("a8", "a8/sym"))
    for rule, text in (*rules, *tails):
        spec = rtn(f"w8,{text}").input.spec
        stats, operand = finished(rule, batches, spec)
        scale, _ = rule.of_stats(stats, operand, spec)
        whole = np.concatenate(batches)
        right, _ = rule.of_values(jnp.asarray(whole), Operand(whole.shape, contract=(1,)), spec)
        assert scale.item() == pytest.approx(right.item(), rel=0.02), (rule, text)


def test_percentiles_that_a_sample_holds_read_it_alone():
    """Sixteen of its values beyond, and it is asked; a rarer tail is counted."""
    spec = rtn("w8,a8").input.spec
    operand = Operand((4, 4), contract=(1,))
    assert [len(Percentile(percent).needs(operand, spec)) for percent in (99.0, 99.9, 99.95, 100.0)] == [1, 1, 2, 2]


@pytest.mark.parametrize("sizes", [(3, 2), (40, 30), (5000, 1, 300), (64,), (65, 0, 1)])
def test_ends_are_the_largest_and_the_smallest_and_no_value_counts_twice(sizes):
    """With 32 places at each end, of values some of which are equal: the weights are as many as the values."""
    rng = np.random.default_rng(len(sizes))
    batches = [np.round(rng.normal(size=n) * 4).astype(np.float32) for n in sizes]
    every = np.sort(np.concatenate(batches))
    ends, sample = Ends(32), Sample(256)
    high, low, count = ends.finish(folded(ends, batches))
    few = min(32, every.size)
    assert np.array_equal(np.asarray(high)[:few], every[::-1][:few])
    assert np.array_equal(np.asarray(low)[:few], every[:few])
    assert count == every.size
    values, weights = drawn({"sample": sample.finish(folded(sample, batches)), "ends": (high, low, count)})
    assert np.sum(np.asarray(weights, np.float64)) == pytest.approx(every.size, rel=1e-6)
    if every.size <= 64:
        assert np.sum(np.asarray(values * weights, np.float64)) == pytest.approx(every.sum(dtype=np.float64), abs=1e-4)


def test_a_clip_leaves_its_mass_to_the_sample():
    """A third of all values are 6, as after relu6: far more than there are places at the end."""
    rng = np.random.default_rng(5)
    batches = [np.clip(rng.normal(size=20000) * 6 + 3, 0, 6).astype(np.float32) for _ in range(5)]
    ends, sample = Ends(), Sample()
    stats = {"sample": sample.finish(folded(sample, batches)), "ends": ends.finish(folded(ends, batches))}
    values, weights = (np.asarray(part, np.float64) for part in drawn(stats))
    every = np.concatenate(batches)
    share = np.mean(every == 6)
    assert np.sum(weights[values == 6]) / every.size == pytest.approx(
        share, abs=5 * np.sqrt(share * (1 - share) / 16384)
    )
