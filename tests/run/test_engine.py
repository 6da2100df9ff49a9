"""The engine end to end on made-up signals: what it writes, that it goes on after a kill, repeats itself, and loses nothing."""

import dataclasses
import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.run import Allocation, Eval, Fit, Method, engine, identity, keys, pieces, run, sections, training
from lowbit.run.experiment import Suite
from lowbit.run.folder import RunFolder, read_metrics
from lowbit.run.identity import fingerprint
from lowbit.run.job import Job
from tests.run import tiny

LATER = ("seconds", "latency", "commit", "dirty")
PLAIN = dataclasses.replace(tiny.config, evals=())


def numbers(folder):
    lines = read_metrics(folder)
    return [{k: v for k, v in line.items() if k not in LATER} for line in lines if line["kind"] in ("epoch", "result")]


def seal_of(piece):
    """Of every bit of the last state of a training."""
    (notes,) = (piece / "train").glob("*/notes/metadata")
    return json.loads(notes.read_text())["seal"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    results = run(tiny.config, tmp_path_factory.mktemp("first"))
    assert results.failed == {}
    return results.folder.path


def test_writes_the_run_folder(first):
    config = json.loads((first / "config.json").read_text())
    assert config["methods"][1]["rules"]["**"]["weight"] == "lsq('int4/channel/sym', start='auto')"
    assert {"seeds", "versions", "commit", "dirty", "device"} <= set(json.loads((first / "run.json").read_text()))
    page = (first / "report.html").read_text()
    assert page.count("<svg") == 4
    assert page.count("<script") == 1  # it sorts tables
    assert len(page) < 500_000
    for name in ("float", "w8a8", "lsq_w4a4"):
        plan, qparams = lb.load(first / f"seed-0/{name}/packed.safetensors")
        assert len(plan) == 2
        assert (0.0 < qparams.bits_per_weight < 6) == (name == "lsq_w4a4")
        assert bool(qparams.weights()) == (name != "float")
    results = [line for line in numbers(first) if line["kind"] == "result"]
    assert [line["method"] for line in results] == ["float", "w8a8", "lsq_w4a4"]
    assert all(line["difference"]["execute"]["max"] == 0 for line in results)
    assert results[0]["metric"]["execute"] > 50
    summary = json.loads((first / "summary.json").read_text())
    assert {name: row["values"] for name, row in summary["rows"].items()} == {
        line["method"]: [round(line["metric"]["execute"], 3)] for line in results
    }
    assert {"commit", "dirty", "versions", "device", "seeds", "minutes"} <= set(summary)
    assert summary["rows"]["float"]["measured"]["latency"]["xla"]["b1"]["median"]["mean"] > 0
    printed = (first / "table.txt").read_text().splitlines()
    assert [line[0] for line in summary["table"]] == ["method", *(line.split()[0] for line in printed[2:])]
    assert {len(line) for line in summary["table"]} == {6}  # all that the table has, but for the time of a call
    assert all(cell in printed[3] for cell in summary["table"][2])
    assert "<svg" in (first / "accuracy.svg").read_text()


def test_goes_on_after_a_kill_with_the_same_bits(first, tmp_path, monkeypatch):
    steps = []
    made = training.stepper

    def dying(*args):
        step = made(*args)

        def counted(*carry):
            steps.append(1)
            if len(steps) == 11:  # the second epoch of the second training
                raise KeyboardInterrupt
            return step(*carry)

        return counted

    monkeypatch.setattr(training, "stepper", dying)
    with pytest.raises(KeyboardInterrupt):
        run(PLAIN, tmp_path)
    assert not (tmp_path / "seed-0/lsq_w4a4/result.json").exists()
    assert run(PLAIN, tmp_path).failed == {}
    assert len(steps) == 11 + 3  # one epoch was left
    assert numbers(tmp_path) == numbers(first)
    for name in ("float", "w8a8", "lsq_w4a4"):
        path = f"seed-0/{name}/packed.safetensors"
        assert (tmp_path / path).read_bytes() == (first / path).read_bytes()
    assert seal_of(tmp_path / "seed-0/lsq_w4a4") == seal_of(first / "seed-0/lsq_w4a4")


def test_what_fails_is_a_row_and_the_others_go_on(tmp_path, capsys):
    def wrong(plan, params, qstate):
        raise OSError("no such penalty")

    def unwanted(x):
        raise ValueError("no such rewrite")

    methods = (
        Method("bad", {"**": "w4"}, rewrites=unwanted),
        tiny.config.methods[0],
        Method("worse", {"**": "w4,a4"}, tiny.FIT, wrong),
    )
    results = run(dataclasses.replace(PLAIN, methods=methods), tmp_path)
    assert set(results.failed) == {"seed-0/bad", "seed-0/worse"}
    assert results.failed["seed-0/bad"] == "ValueError: no such rewrite"
    assert results.failed["seed-0/worse"] == "OSError: no such penalty"
    table = (tmp_path / "table.txt").read_text().splitlines()
    assert [line.split()[:2] for line in table[2:]] == [
        ["float", "100.00"], ["bad", "failed"], ["w8a8", "100.00"], ["worse", "failed"],
    ]  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text())["rows"]["bad"]["errors"].keys() == {"0"}
    assert "no such penalty" in capsys.readouterr().out
    again = run(dataclasses.replace(PLAIN, methods=(methods[1],)), tmp_path, only=["w8*"])
    assert again.folder.reused == ["seed-0/w8a8", "seed-0/float"]  # a failed neighbour costs nothing


def test_a_broken_promise_fails(tmp_path, monkeypatch):
    execute = lb.execute

    def wrong(fn, plan):
        return lambda *args: execute(fn, plan)(*args) + (0.5 if plan.quantized else 0.0)

    monkeypatch.setattr(pieces.lb, "execute", wrong)
    results = run(untrained(), tmp_path)
    assert list(results.failed) == ["seed-0/w8"]
    assert "simulate - execute is 0.5 in 100 % of outputs" in results.failed["seed-0/w8"]


def quiet(results):
    """A report that draws nothing."""


def untrained(**changes):
    return dataclasses.replace(
        PLAIN, **{"fit": None, "loss": None, "report": quiet, "methods": (Method("w8", {"**": "w8,a8"}),), **changes}
    )


@pytest.mark.slow
def test_methods_may_rewrite_solve_and_allocate(tmp_path):
    def rewrites(x):
        from lowbit.rewrites.equalize import equalize

        return (equalize(),)

    methods = (
        Method("equalized", {"**": "w8,a8"}, rewrites=rewrites),
        Method("gptq", {"**": "w4,a8"}, recipe="gptq"),
        Method("mixed", {"**": "w8,a8"}, allocate=Allocation(("w2,a8", "w8,a8"), lb.budget(bits=7.0))),
        Method("whole", {"**": "w8,a8"}, integer=True),
    )
    results = run(untrained(methods=methods), tmp_path)
    assert results.failed == {}
    rows = {row.name: row for row in results.rows}
    assert rows["mixed"].values("bits_per_weight")[0] <= 7.0 < rows["equalized"].values("bits_per_weight")[0]
    assert lb.load(tmp_path / "seed-0/whole/packed.safetensors")[0].is_full_integer
    codes = {name: lb.load(tmp_path / f"seed-0/{name}/packed.safetensors")[1].weights() for name in ("gptq", "whole")}
    assert set(codes["gptq"]) == {"a/w", "c/w"}
    assert all(rows[name].values("difference", "execute", "max") == [0.0] for name in ("equalized", "mixed", "whole"))
    assert rows["gptq"].values("difference", "execute", "max") == []  # a recipe leaves codes, no state to simulate from


def test_other_commits_are_stale_and_damage_is_seen(tmp_path, monkeypatch, capsys):
    commit = ["one"]
    true = engine.RunFolder.__init__.__globals__["environment"]
    monkeypatch.setattr("lowbit.run.folder.environment", lambda: true() | {"commit": commit[0]})
    calls, measured = [], engine.measure_piece
    monkeypatch.setattr(engine, "measure_piece", lambda piece: calls.append(piece.name) or measured(piece))
    config = untrained(evals=(Eval("mine", lambda piece: {"mine": 1.0}),))
    run(config, tmp_path)
    run(config, tmp_path)
    assert calls == ["seed-0/float", "seed-0/w8"]
    commit[0] = "two"
    assert run(config, tmp_path, accept_stale=True).rows[1].values("mine") == [1.0]
    assert len(calls) == 2
    results = run(config, tmp_path)
    assert "of another commit" in capsys.readouterr().out
    assert results.rows[1].values("mine") == [1.0]
    assert len(calls) == 4
    packed = tmp_path / "seed-0/w8/packed.safetensors"
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    run(config, tmp_path)
    assert calls[4:] == ["seed-0/w8"]
    assert "is not what was written" in capsys.readouterr().out


def test_the_folder_of_an_earlier_lowbit_is_done_again(tmp_path, capsys):
    """Its results have no seal and another key, its config other fields, its states of trainings are single files."""
    for name in ("float", "w8"):
        here = tmp_path / "seed-0" / name
        here.mkdir(parents=True)
        (here / "result.json").write_text(json.dumps({"key": "0123456789abcdef", "result": {"accuracy": 12.0}}))
        (here / "train.safetensors").write_bytes(bytes(64))
    (tmp_path / "config.json").write_text('{"name": "tiny", "epochs": 3}')
    (tmp_path / "metrics.jsonl").write_text('{"kind": "result", "seed": 0, "method": "w8", "accuracy": 12.0}\n')
    results = run(untrained(report=None), tmp_path)
    assert results.failed == {}
    assert [row.values("accuracy") for row in results.rows] == [[], []]
    assert all(row.values("metric", "execute") for row in results.rows)
    assert "the config differs from the last run here" in capsys.readouterr().out


def test_a_suite_has_one_report(tmp_path):
    seen = []
    config = Suite(
        "both", (untrained(name="a"), untrained(name="b")), lambda results, folder: seen.append((results, folder))
    )
    engine.run_suite(config, tmp_path)
    ((results, folder),) = seen
    assert [each.experiment.name for each in results] == ["a", "b"]
    assert folder.path == tmp_path
    assert (tmp_path / "b/seed-0/w8/result.json").is_file()
    with pytest.raises(ValueError, match="--only w3 fits no piece; there are float, w8"):
        engine.run_suite(config, tmp_path, only=["w3"])
    some = Suite("both", (config.experiments[0], untrained(name="c", methods=())), config.report)
    engine.run_suite(some, tmp_path, fresh=True, only=["w8"])  # fits the first alone: of the other there is nothing
    assert [[len(row.results) for row in each.rows] for each in seen[-1][0]] == [[0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "seeds must be distinct"),
        ({"seeds": (1, 1)}, "seeds must be distinct"),
        ({"test_batch": 0}, "test_batch must be at least 1"),
        ({"train_samples": 0}, "train_samples must be at least 1"),
        ({"name": "a/b"}, "names become folders"),
        ({"methods": (Method("float", {}),)}, "'float' is taken twice"),
        ({"fit": Fit(epochs=0)}, "fit: epochs and batch"),
        ({"loss": None}, "a fit needs a training loss"),
        ({"evals": (Eval("x", dict), Eval("x", dict))}, "evals: names must differ"),
    ],
)
def test_config_checks(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.config, **change)


def test_a_row_is_there_though_an_eval_changes_what_it_holds(tmp_path):
    seen = []
    config = untrained(methods=(), evals=(Eval("mine", lambda piece: seen.append(1) or {"mine": len(seen)}),))
    assert run(config, tmp_path).rows[0].values("mine") == [1.0]


def test_only_must_fit(tmp_path):
    with pytest.raises(ValueError, match=r"--only w3\* fits no piece"):
        run(PLAIN, tmp_path, only=["w8a8", "w3*"])


def test_a_piece_is_known_by_what_it_depends_on(tmp_path):
    folder = RunFolder(tmp_path, PLAIN)
    data = tiny.bumps()

    def both(config, data=data, method=1):
        job = Job(config, data, folder, None)
        return keys.train_key(job, job.experiment.rows[method], 0), keys.key_of(job, job.experiment.rows[method], 0)

    def strong(strength):
        return lambda plan, params, qstate: strength * jnp.sum(jnp.square(params["a"]["w"]))

    def penalized(strength):
        return dataclasses.replace(PLAIN, methods=(Method("m", {"**": "w4,a4"}, tiny.FIT, strong(strength)),))

    assert both(penalized(0.0)) == both(penalized(0.0)) != both(penalized(1000.0))
    base = both(PLAIN)
    longer = dataclasses.replace(PLAIN, name="other", test_batch=10)
    assert both(longer)[0] == base[0]  # nothing is trained again
    assert both(longer)[1] != base[1]
    flipped = data.train.inputs.copy()
    flipped.view(np.uint32)[0, 0] ^= 1
    assert both(PLAIN, data._replace(train=data.train._replace(inputs=flipped)))[0] != base[0]
    labels = np.roll(data.test.labels, 1)
    other = both(PLAIN, data._replace(test=data.test._replace(labels=labels)))
    assert other[0] == base[0]
    assert other[1] != base[1]
    assert fingerprint(PLAIN.methods[0]) != fingerprint(PLAIN.methods[1])


def test_a_recipe_is_known_by_its_own_modules(tmp_path, monkeypatch):
    """Code of another recipe's solver changes no piece; its own does, and such a piece is taken where stale ones are accepted."""
    methods = (Method("rtn", {"**": "w4"}, recipe="rtn"), Method("gptq", {"**": "w4"}, recipe="gptq"))
    config, code = untrained(methods=methods), identity._code_of
    changed = []

    def known():
        identity._numerics.cache_clear()
        job = Job(config, tiny.bumps(), RunFolder(tmp_path, config), None)
        return {method.name: keys.key_of(job, method, 0) for method in config.rows}

    monkeypatch.setattr(identity, "_code_of", lambda path: code(path) + str(path.name in changed))
    before = known()
    changed.append("lqer.py")
    assert known() == before
    changed[:] = [identity.Path(sys.modules["lowbit.solvers.gptq"].__file__).name]
    after = known()
    assert [name for name in before if before[name] != after[name]] == ["gptq"]
    assert identity.is_asked_alike(before["gptq"], after["gptq"])
    folder = RunFolder(tmp_path, config)
    folder.finish("seed-0/gptq", before["gptq"], {"n": 1})
    assert folder.finished("seed-0/gptq", after["gptq"]) is None
    assert folder.stale == ["seed-0/gptq"]
    assert RunFolder(tmp_path, config, accept_stale=True).finished("seed-0/gptq", after["gptq"]) == {"n": 1}
    identity._numerics.cache_clear()


def test_the_page_is_of_the_config_at_hand(tmp_path):
    """Epochs and seeds of an earlier, longer config stay in the metrics, and in no curve; a failed row has no earlier drawing."""
    long = dataclasses.replace(PLAIN, fit=None, methods=(Method("m", {"**": "w4,a4"}, tiny.FIT),), seeds=(0, 1))
    run(long, tmp_path)
    found = run(
        dataclasses.replace(long, methods=(Method("m", {"**": "w4,a4"}, Fit(epochs=1, batch=50)),), seeds=(0,)),
        tmp_path,
    )
    assert [(line["piece"], line["epoch"]) for line in sections._epochs(found)] == [("seed-0/m", 0)]
    assert len([line for line in read_metrics(tmp_path) if line["kind"] == "epoch"]) == 4


def test_a_drawing_that_is_lost_is_made_again(first, tmp_path):
    shutil.copytree(first, tmp_path / "run")
    drawn = tmp_path / "run/evals/grids/w8a8.svg"
    before = drawn.read_bytes()
    drawn.unlink()
    run(tiny.config, tmp_path / "run")
    assert drawn.read_bytes() == before
