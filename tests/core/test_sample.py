"""The calibration sample is uniform: laws of chance, with bounds that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lowbit.core.spec import Channel, Operand, Tensor
from lowbit.core.statistics import MinMax, MovingMinMax, Sample

SIGMAS = 5.0
"""A share beyond this many standard deviations has a chance of 6e-7; the draws are fixed, so a test that passes stays."""


def folded(sample, batches):
    update = jax.jit(lambda state, x: sample.update(state, x, Operand(x.shape)))
    state = sample.init(Operand((1,)))
    for batch in batches:
        state = update(state, jnp.asarray(batch, jnp.float32))
    return state


def shares(kept, sizes):
    """How many of the kept values come from each batch, whose values are its index, in standard deviations from even."""
    sizes = np.asarray(sizes, np.float64)
    counts = np.bincount(np.asarray(kept).astype(int), minlength=len(sizes))
    p = sizes / sizes.sum()
    return (counts - kept.size * p) / np.sqrt(kept.size * p * (1 - p))


@pytest.mark.parametrize(
    "sizes",
    [[1000] * 100, [64] * 3 + [5000] * 7, [20000] + [100] * 60, [7, 50, 300, 9000]],
    ids=["even", "up", "down", "few"],
)
def test_every_value_is_as_likely_as_any_other(sizes):
    """A batch of n of N values has n / N of the sample, binomially: it had 12 times its share of 100 where it came first."""
    state = folded(Sample(4096), [np.full(n, i) for i, n in enumerate(sizes)])
    assert np.abs(shares(state[0], sizes)).max() < SIGMAS


def test_places_within_a_batch_are_even():
    """Every tenth of every batch has a tenth of what is kept of it."""
    tenths = np.repeat(np.arange(10), 500)
    state = folded(Sample(4096), [tenths] * 30)
    assert np.abs(shares(state[0], [1] * 10)).max() < SIGMAS


def test_a_quantile_of_the_sample_is_that_of_the_data():
    """The rank of a sample's quantile p is p with a deviation of sqrt(p (1 - p) / size), whatever the distribution."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(16, 256)) * (10 if i == 0 else 1) for i in range(40)]
    kept = np.abs(np.asarray(folded(Sample(), batches)[0]))
    every = np.sort(np.abs(np.concatenate([b.ravel() for b in batches])))
    for p in (0.5, 0.9, 0.95, 0.99, 0.999):
        rank = np.searchsorted(every, np.quantile(kept, p)) / every.size
        assert abs(rank - p) < SIGMAS * np.sqrt(p * (1 - p) / kept.size)


def test_two_samples_merge_as_one():
    sizes = [700] * 30 + [2000] * 10
    batches = [np.full(n, i) for i, n in enumerate(sizes)]
    sample = Sample(4096)
    merged = sample.merge(folded(sample, batches[:30]), folded(sample, batches[30:]))
    assert np.abs(shares(merged[0], sizes)).max() < SIGMAS
    assert float(merged[1]) == sum(sizes)
    empty = sample.init(Operand((1,)))
    alone = folded(sample, batches[:3])
    for both in (sample.merge(empty, alone), sample.merge(alone, empty)):
        np.testing.assert_array_equal(both[0], alone[0])


def test_folding_goes_on_from_a_state_and_repeats():
    rng = np.random.default_rng(1)
    batches, sample = [rng.normal(size=n) for n in (300, 20, 1000, 5)], Sample(512)
    whole, half = folded(sample, batches), folded(sample, batches[:2])
    for batch in batches[2:]:
        kept = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), half)
        half = sample.update(kept, jnp.asarray(batch, jnp.float32), Operand(batch.shape))
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(whole, half, strict=True))
    again = folded(sample, batches)
    np.testing.assert_array_equal(whole[0], again[0])
    assert np.isin(np.asarray(whole[0]), np.concatenate(batches).astype(np.float32)).all()


def test_an_empty_batch_changes_nothing_and_a_nan_everything():
    sample, operand = Sample(64), Operand((2, 3))
    for statistic in (sample, MinMax(Tensor()), MovingMinMax(Tensor())):
        state = statistic.update(statistic.init(operand), jnp.ones((2, 3)), operand)
        after = statistic.update(state, jnp.ones((0, 3)), operand)
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(state, after, strict=True))
    hurt = folded(sample, [np.ones(1000), np.where(np.arange(1000) == 5, np.nan, 1.0), np.ones(1000)])
    assert np.isnan(hurt[0]).all()
    whole = folded(sample, [np.ones(10)])
    assert np.isnan(sample.merge(whole, hurt)[0]).all()
    assert np.isnan(sample.merge(hurt, whole)[0]).all()


def test_extremes_merge_as_if_folded_in_order():
    """The moving average of eight batches is that of five, then three: sum of (1 - d) d**(n - i) x_i over 1 - d**n."""
    rng = np.random.default_rng(2)
    batches = [jnp.asarray(rng.normal(size=(4, 6)), jnp.float32) for _ in range(8)]
    operand = Operand((4, 6), contract=(1,))
    weights = 0.1 * 0.9 ** np.arange(7, -1, -1) / (1 - 0.9**8)
    want = {
        MinMax: [np.min([b.min(1) for b in batches], 0), np.max([b.max(1) for b in batches], 0)],
        MovingMinMax: [
            sum(w * np.asarray(f(b, 1), np.float64) for w, b in zip(weights, batches, strict=True))
            for f in (np.min, np.max)
        ],
    }
    for cls, right in want.items():
        statistic = cls(Channel(), (1,))
        states = []
        for part in (batches[:5], batches[5:]):
            state = statistic.init(operand)
            for batch in part:
                state = statistic.update(state, batch, operand)
            states.append(state)
        merged = statistic.finish(statistic.merge(*states))
        for got, expected in zip(merged, right, strict=True):
            np.testing.assert_allclose(np.asarray(got)[:, 0], expected, rtol=32 * 2.0**-24)


def test_shards_have_their_share():
    """One device stands for all: the sample across an axis is a merge by counts."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sample = Sample(256)
    state = folded(sample, [np.arange(1000.0)])

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    def across(state):
        return sample.across(state, ("data",))

    kept, count, batches = across(state)
    np.testing.assert_array_equal(kept, state[0])
    assert (float(count), int(batches)) == (1000.0, 1)
