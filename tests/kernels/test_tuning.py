"""Where a configuration comes from, and that a table survives a writer that dies."""

import concurrent.futures
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import CpuConfig, quant_matmul, tuning
from lowbit_kernels.api import matmul_spec
from lowbit_kernels.implementations import IMPLEMENTATIONS
from lowbit_kernels.shapes import SMALL
from tests.core.test_atomic import Stopped, stopped_at
from tests.kernels.cases import inputs, matrix

CPU = next(each for each in IMPLEMENTATIONS if each.name == "cpu")
PACKED, X = matrix(0, SMALL[2], 4, signed=True, affine=False), inputs(0, SMALL[2])
SPEC = matmul_spec(X, PACKED, "int8", None)
KEY = tuning.key_of("cpu", SPEC)


def table(threads: int) -> dict[str, dict[str, object]]:
    return {KEY.text: tuning.entry(CpuConfig(threads=threads), 1.0, 2.0)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def test_the_context_comes_before_the_users_cache_and_that_before_the_heuristic():
    assert tuning.lookup(CPU, SPEC) is None
    tuning.write(tuning.user_path(KEY.device), table(3))
    assert tuning.lookup(CPU, SPEC) == CpuConfig(threads=3)
    with tuning.using(table(2)):
        assert tuning.lookup(CPU, SPEC) == CpuConfig(threads=2)
        with tuning.using({}):
            assert tuning.lookup(CPU, SPEC) == CpuConfig(threads=3)
    assert tuning.lookup(CPU, dataclasses.replace(SPEC, out=SPEC.out + 1)) is None


def test_an_explicit_configuration_comes_first_and_a_table_reaches_the_kernel():
    def threads(config):
        """The last of the numbers that the native call is given."""
        # a new function each time: a compiled one keeps the configuration it was traced with
        call = jax.jit(lambda x, p: quant_matmul(x, p, activation="int8", implementation="cpu", config=config))
        (numbers,) = re.findall(r"config = dense<\[([^]]*)\]>", call.lower(X, PACKED).as_text())
        return int(numbers.split(",")[-1])

    with tuning.using(table(2)):
        assert threads(None) == 2
        assert threads(CpuConfig(threads=1)) == 1
    assert threads(None) == 0


def test_rows_share_a_bucket_and_other_shapes_do_not():
    spec = dataclasses.replace(SPEC, rows=16)
    assert tuning.key_of("cpu", spec) == KEY  # 9 rows
    others = [dataclasses.replace(SPEC, **{k: v}) for k, v in {"rows": 17, "bits": 3, "activation": "float"}.items()]
    assert len({tuning.key_of("cpu", spec).text for spec in [SPEC, *others]}) == 4


def test_a_write_adds_to_the_file_and_a_failed_one_leaves_it_whole(cache):
    path = tuning.user_path(KEY.device)
    tuning.write(path, table(1))
    tuning.write(path, {"other": {"config": {}}})
    assert set(tuning.read(path)) == {KEY.text, "other"}
    with pytest.raises(TypeError):
        tuning.write(path, {"bad": {"config": object()}})
    assert set(json.loads(path.read_text())) == {KEY.text, "other"}
    assert [p.name for p in cache.iterdir()] == [path.name]


@pytest.mark.parametrize("step", range(8))
def test_a_writer_that_is_stopped_anywhere_leaves_a_whole_table(cache, monkeypatch, step):
    """Every call of the file system raises from the ``step``-th on, so that no handler cleans up; the next writer does."""
    path = tuning.user_path(KEY.device)
    tuning.write(path, table(1))
    with stopped_at(monkeypatch, step, ("listdir", "unlink", "fdopen", "fsync", "replace")) as left:
        try:
            tuning.write(path, {"other": {"config": {}}})
        except Stopped:
            assert step < 5
    is_new = left[0] >= 0 or step == 4  # the folder's flush is the last step
    assert set(tuning.read(path)) == ({KEY.text, "other"} if is_new else {KEY.text})
    tuning.write(path, {"third": {"config": {}}})
    assert set(tuning.read(path)) == {KEY.text, "third"} | ({"other"} if is_new else set())
    assert [p.name for p in cache.iterdir()] == [path.name]


def test_writers_at_once_lose_nothing(cache):
    path = tuning.user_path(KEY.device)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: tuning.write(path, {f"k{n}": {"config": {}}}), range(24)))
    assert len(tuning.read(path)) == 24
    assert [p.name for p in cache.iterdir()] == [path.name]


def test_a_broken_table_says_what_to_do():
    path = tuning.user_path(KEY.device)
    path.write_text("{")
    with pytest.raises(ValueError, match="tune again"):
        tuning.lookup(CPU, SPEC)
    with tuning.using({KEY.text: {"config": {"lanes": 3}}}), pytest.raises(ValueError, match="does not fit CpuConfig"):
        tuning.lookup(CPU, SPEC)


def test_every_packaged_table_fits_its_implementation():
    configs = {each.name: each.config for each in IMPLEMENTATIONS}
    for file in tuning.packaged():
        for key, each in tuning.read(file).items():
            config = configs[key.split("/")[0]]
            assert config is not None, key
            config(**each["config"])


def test_a_configuration_changes_no_result():
    results = [
        quant_matmul(X, PACKED, activation="int8", implementation="cpu", config=config)
        for config in (None, *CPU.candidates(SPEC))
    ]
    for got in results[1:]:
        np.testing.assert_array_equal(got, results[0])
    assert bool(jnp.any(results[0] != 0))
