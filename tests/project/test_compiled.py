"""What is kept between runs changes no number, is bounded, and a spoiled part of it does no harm."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lowbit_kernels import pack_matrix, prepare, quant_matmul
from tests import compiled
from tests.values import normal

_HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    yield compiled.Cache(tmp_path / "shared")
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def hits(function):
    """What a function returns, and how many programs were found rather than compiled."""
    found = []

    def listen(event, **_):
        found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        return function(), found.count(_HIT)
    finally:
        jax.monitoring.unregister_event_listener(listen)


def programs():
    """Functions without a compiled form in this process, always of the same programs: XLA's code, and a native kernel."""
    weight = prepare(pack_matrix(jnp.arange(64 * 32).reshape(64, 32) % 15 - 7, jnp.full((1, 32), 0.1), bits=4))
    return (
        jax.jit(lambda x: jnp.tanh(x @ x.T) * 3.0 + jnp.sum(jnp.exp(x), 1)),
        jax.jit(lambda x: quant_matmul(x, weight, activation="int8")),
    )


def test_a_program_that_was_kept_gives_the_same_bits(cache):
    x = normal(0, 8, 64)
    first, _ = hits(lambda: [np.asarray(f(x)).tobytes() for f in programs()])
    again, found = hits(lambda: [np.asarray(f(x)).tobytes() for f in programs()])
    assert found >= 2
    assert first == again
    cache.exchange()
    other = compiled.Cache(cache.shared)  # another process, which starts with what is shared
    assert set(os.listdir(other.own)) == set(os.listdir(cache.own))
    third, found = hits(lambda: [np.asarray(f(x)).tobytes() for f in programs()])
    assert found >= 2
    assert first == third


def test_half_an_entry_is_compiled_anew(cache):
    x = normal(0, 8, 64)
    want = np.asarray(programs()[0](x))
    for name in os.listdir(cache.own):
        (cache.own / name).write_bytes((cache.own / name).read_bytes()[:40])
    got, found = hits(lambda: np.asarray(programs()[0](x)))
    assert found == 0
    np.testing.assert_array_equal(got, want)


def test_the_oldest_go_first(tmp_path):
    for age, name in enumerate(("new", "old", "older")):
        path = tmp_path / "key" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    killed, running = tmp_path / "key" / "own-1", tmp_path / "key" / "own-2"
    for folder in (killed, running):
        folder.mkdir()
        (folder / "entry").touch()
    os.utime(killed, (1e9, 1e9))
    compiled.prune(tmp_path, limit=250)
    assert {path.name for path in (tmp_path / "key").iterdir()} == {"new", "old", "own-2"}


def test_other_flags_have_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LOWBIT_COMPILED", str(tmp_path))
    before = compiled.shared_folder()
    assert before == compiled.shared_folder()
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert compiled.shared_folder() != before
    monkeypatch.setenv("LOWBIT_COMPILED", "")
    assert compiled.shared_folder() is None
