"""What the table of mixed plans is made of, and the job that fills it: networks, scores, budgets, plans and recipes.

Every plan is packed and run by `lowbit.execute` on inputs that no calibration has seen, and compared with the float network:
signal to noise and divergence of its logits, and what it gets right. A piece is finished when its ``result.json`` is there
with the same key, so a stopped run goes on.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments.mixed_measures import per_input
from experiments.mixed_summary import summary
from lowbit.allocate import measures
from lowbit.allocate.budget import Budget
from lowbit.allocate.choose import allocation
from lowbit.allocate.evolution import evolve
from lowbit.allocate.scores import Scores
from lowbit.core import atomic
from lowbit.plan.costs import weight_bits
from lowbit.plan.rows import Plan
from lowbit.recipes.lookup import named
from lowbit.run import Model
from lowbit.run.engine import compiled_kept
from lowbit.run.environment import command
from lowbit.run.experiment import FLOAT
from lowbit.run.folder import TIMES, RunFolder, plain, write_json
from lowbit.run.screen import console


def check_only(only: Sequence[str], names: Sequence[str]) -> None:
    """Raises ValueError where a name that is asked for is none there is: nothing would be done, in silence."""
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"only: there is no {unknown[0]!r}; there are {', '.join(names)}")


def own_classes(logits: jax.Array) -> jax.Array:
    """Returns how unlikely the model's own most likely classes are, on the mean: a loss without labels that has a Hessian."""
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.max(logits, axis=-1))


class Subject(NamedTuple):
    """A network with its data.

    Attributes:
        model: whose result is logits, classes last; batch norms folded.
        batches: argument tuples for calibration and scores.
        inputs: argument tuples of unlabelled inputs, on which logits are compared.
        unit: the unit of every input, from 0, that a bootstrap draws: its photograph, sentence or image.
        labelled: argument tuples of labelled inputs.
        right: ``(logits, logits of float) -> [inputs]`` of the labelled ones, 0 or 1.
        trained: ``(model, rules) -> (plan, qparams)`` by quantization-aware training, or None.
    """

    model: Model
    batches: Sequence[tuple[Any, ...]]
    inputs: Sequence[tuple[Any, ...]]
    unit: np.ndarray
    labelled: Sequence[tuple[Any, ...]]
    right: Callable[[np.ndarray, np.ndarray], np.ndarray]
    trained: Callable[[Model, Mapping[str, str]], tuple[Plan, lb.QParams]] | None = None


QAT = "qat"
"""The recipe that trains."""


@dataclasses.dataclass(frozen=True)
class Budgeted:
    """One budget, and the uniform plans that it is compared with.

    Attributes:
        bits: mean stored bits of a weight, scales included; or a rule: as large as the uniform plan of it.
        uniform: rules of plans that are no smaller, or are shown for another reason.
    """

    bits: float | str
    uniform: tuple[str, ...]

    @property
    def name(self) -> str:
        """What plans are called by."""
        return f"as {self.bits}" if isinstance(self.bits, str) else f"{self.bits:g}"


@dataclasses.dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: of its folder.
        title: what the table calls it.
        subject: loads it.
        right: what the labelled inputs say.
        candidates: to choose from, with a rule that quantizes everywhere they may.
        keep: globs of operations that stay in float.
        budgets: that are compared.
        ladder: further budgets, whose plans are rounded to nearest: for the front, and what was predicted.
        chosen: the method whose scores choose.
        methods: of `lowbit.sensitivity`, with the loss of those that take one (``own``: the likelihood of the model's own classes):
            all are compared with what was measured.
        measured: batches of ``inputs`` on which every candidate is measured at every operation, one at a time.
        recipes: of `lowbit.quantize`, or `QAT`.
        positions: distributions among an input's logits, of whose divergences the mean is measured and scores are the sum.
        generations: of evolution, which begins with the plan of each budget and looks at whole plans rounded to nearest, on the
            calibration data; 0: none.
    """

    name: str
    title: str
    subject: Callable[[], Subject]
    right: str
    candidates: tuple[str, ...]
    budgets: tuple[Budgeted, ...]
    keep: tuple[str, ...] = ()
    ladder: tuple[float, ...] = ()
    chosen: str = "taylor kl"
    methods: tuple[str, ...] = ("taylor kl", "taylor mse", "fisher kl", "hessian own", "linearity", "sqnr")
    measured: int = 1
    recipes: tuple[str, ...] = ("rtn", "gptq")
    positions: int = 1
    generations: int = 0


@dataclasses.dataclass(frozen=True)
class Mixed:
    """All of them.

    Attributes:
        name: of the run's folder.
        networks: in the order of the table.
        only: names of networks to run, or none for all; the table is of what is there.
        recipes: to run, or none for all.
        has_scores: whether scores are compared with what single operations measure, after plans rounded to nearest.
        seeds: not used: what is drawn is drawn from fixed keys.
    """

    name: str
    networks: tuple[Network, ...]
    only: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    has_scores: bool = True
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        check_only(self.only, [network.name for network in self.networks])
        check_only(self.recipes, [recipe for network in self.networks for recipe in network.recipes])


def run(config: Mixed, out: Path, *, fresh: bool = False) -> Path:
    """Runs what is not finished, writes ``summary.json``, and returns the folder.

    Raises:
        DataError: if a network or its data is not installed.
    """
    folder = RunFolder(out, config, fresh=fresh, accept_stale=True)  # known by what is asked for alone
    with compiled_kept(folder.path):
        asked = [n for n in config.networks if not config.only or n.name in config.only]
        works = {network.name: _Work(folder, network) for network in asked}
        for recipe in dict.fromkeys(r for network in asked for r in network.recipes):
            for work in works.values():
                if recipe in work.network.recipes and (not config.recipes or recipe in config.recipes):
                    work.all_of(recipe)
            if config.has_scores and recipe == "rtn":
                for work in works.values():
                    work.compared()
        made = {key: folder.environment[key] for key in ("versions", "device")}
        every = [summary(folder.path / n.name, n, known(folder, n)) for n in config.networks]
        networks = [each for each in every if each is not None]
        for each in networks:
            for name in each.get("stale", ()):
                console().print(
                    f"{each['name']}/{name} is of another config: left out", style="yellow", highlight=False
                )
        write_json(
            folder.path / "summary.json", {"config": config.name, "command": command(), "networks": networks} | made
        )
    return folder.path


def known(folder: RunFolder, network: Network) -> dict[str, dict[str, Any]]:
    """Returns the results of a network's pieces that the config asks for and that are finished, by name; does none."""
    work = _Work(folder, network)
    work.does = False
    for recipe in network.recipes:
        work.all_of(recipe)
    work.compared()
    return dict(sorted((name.replace("_", " "), result) for name, result in work.found.items()))


class _Work:
    """The pieces of one network; it is loaded by the first that is not finished."""

    def __init__(self, folder: RunFolder, network: Network):
        self.folder, self.network, self.terminal = folder, network, console()
        self.loaded: Subject | None = None
        self.bound: Plan | None = None
        self.found: dict[str, dict[str, Any]] = {}
        self.does = True

    @property
    def subject(self) -> Subject:
        if self.loaded is None:
            self.loaded = self.network.subject()
        return self.loaded

    @property
    def plan(self) -> Plan:
        if self.bound is None:
            model = self.subject.model
            self.bound = lb.bind(model.fn, self.rules("w8"), model.params, model.state, *self.subject.batches[0])
        return self.bound

    def rules(self, rest: str, each: Mapping[str, str] | None = None) -> dict[str, str]:
        """Rules that keep what stays in float, say what is chosen, and one for the rest."""
        kept = dict.fromkeys(self.network.keep, "keep")
        return kept | dict(each or {}) | ({} if each else {"**": rest})

    def all_of(self, recipe: str) -> None:
        """Does what one recipe needs."""
        self.piece(FLOAT, {}, self._float)
        self._scored(self.network.chosen)
        for name, rules in self.plans(recipe).items():
            self.piece(
                f"{name}/{recipe}", {"rules": rules, "how": recipe if recipe == QAT else str(named(recipe))},
                lambda rules=rules, name=name: self._quantized(f"{name}/{recipe}", rules, recipe),
            )  # fmt: skip

    def compared(self) -> None:
        """Does what shows how well scores predict: the other methods, and every candidate measured alone."""
        for method in self.network.methods:
            self._scored(method)
        self.piece("measured", {"candidates": self.network.candidates, "n": self.network.measured}, self._measured)

    def _scored(self, method: str) -> None:
        self.piece(f"scores/{method}", {"candidates": self.network.candidates}, lambda: self._scores(method))

    def piece(self, name: str, what: Mapping[str, Any], do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = f"{self.network.name}/{name}".replace(" ", "_")
        key = hashlib.sha256(json.dumps([plain(what)], sort_keys=True).encode()).hexdigest()[:16]
        result = self.folder.finished(path, key)
        if result is None and not self.does:
            return {}
        if result is None:
            started, spent = time.perf_counter(), time.process_time()
            result = do()
            result |= {
                TIMES: round(time.perf_counter() - started, 1),
                "cpu_seconds": round(time.process_time() - spent, 1),
            }
            result |= {what: self.folder.environment[what] for what in ("commit", "dirty")}
            self.folder.finish(path, key, result)
        said = f"{result['dB']:7.2f} dB  KL {result['KL']:.4f}  {result['right %']:.1f} %" if "dB" in result else ""
        if self.does:
            self.terminal.print(f"{path:<44} {result[TIMES]:6.0f} s  {said}", highlight=False)
        self.found[name] = result
        return result

    def plans(self, recipe: str) -> dict[str, dict[str, str]]:
        """Rules by name: every mixed plan, the uniform ones beside it, and for rounding to nearest the ladder."""
        is_nearest = recipe == self.network.recipes[0]
        made: dict[str, dict[str, str]] = {}
        for budget in self.network.budgets:
            made |= self.chosen(f"mixed {budget.name}", self.choice(budget))
            made |= {f"uniform {rule.replace('/', ' ')}": self.rules(rule) for rule in budget.uniform}
            if is_nearest and self.network.generations:
                made |= self.chosen(f"evolved {budget.name}", self.evolved(budget))
        if is_nearest:
            for bits in self.network.ladder:
                made |= self.chosen(f"mixed {bits:g}", self.choice(Budgeted(bits, ())))
            made |= {f"uniform {rule.replace('/', ' ')}": self.rules(rule) for rule in self.network.candidates}
        return made

    def chosen(self, name: str, choice: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """The rules of a choice by name; nothing where it was not made yet, and nothing is to be done."""
        return {name: self.rules("", choice)} if choice else {}

    def choice(self, budget: Budgeted) -> dict[str, str]:
        """What is chosen under a budget: kept, since it does not need the network once it is known."""
        scores = self.found.get(f"scores/{self.network.chosen}", {}).get("scores")

        def choose() -> dict[str, Any]:
            found = allocation(self.plan, Scores.from_json(json.dumps(scores)), budget=self.limit(budget))
            return {"choice": found.choice, "gap": found.gap, "table": str(found), "costs": found.lines[0].costs}

        return self.piece(f"choice/mixed {budget.name}", {"scores": scores}, choose).get("choice", {})

    def limit(self, budget: Budgeted) -> Budget:
        if not isinstance(budget.bits, str):
            return lb.budget(bits=budget.bits)
        rule = budget.bits
        uniform = lb.with_quantizers(self.plan, lambda row: rule if row.weight and row.weight.spec else "keep")
        return lb.budget(bits=stored_bits(uniform) * (1 + 1e-9))

    def evolved(self, budget: Budgeted) -> dict[str, str]:
        """What evolution makes of it, by the divergence of whole plans on the calibration data."""
        scores = self.found.get(f"scores/{self.network.chosen}", {}).get("scores")
        generations = self.network.generations

        def search() -> dict[str, Any]:
            model = self.subject.model
            found = evolve(
                model.fn, self.plan, model.params, [(model.state, *x) for x in self.subject.batches],
                Scores.from_json(json.dumps(scores)), budget=self.limit(budget), measure=measures.kl, generations=generations,
            )  # fmt: skip
            return {"choice": found.choice, "start": found.start, "measured": found.measured}

        return self.piece(f"choice/evolved {budget.name}", {"scores": scores, "n": generations}, search).get(
            "choice", {}
        )

    def _float(self) -> dict[str, Any]:
        model, subject = self.subject.model, self.subject
        call = jax.jit(model.fn)
        for part, given in (("inputs", subject.inputs), ("labelled", subject.labelled)):
            self._save(FLOAT, part, [np.asarray(call(model.params, model.state, *x)) for x in given])
        before = self._read(FLOAT, "labelled")
        return {"right %": 100 * float(np.mean(subject.right(before, before)))}

    def _scores(self, method: str) -> dict[str, Any]:
        name, _, loss = method.partition(" ")
        model = self.subject.model
        spent = time.process_time()
        scores = lb.sensitivity(
            model.fn, self.plan, model.params, [(model.state, *x) for x in self.subject.batches],
            candidates=self.network.candidates, method=name, loss=own_classes if loss == "own" else loss or None,
            cache=self.folder.piece(f"{self.network.name}/scored/{method.replace(' ', '_')}"),
        )  # fmt: skip
        sizes = [len(jax.tree.leaves(x)[0]) for x in self.subject.batches]
        return {"scores": json.loads(scores.json()), "batch": sizes[0], "cpu": round(time.process_time() - spent, 1)}

    def _measured(self) -> dict[str, Any]:
        """The divergence of every candidate at every operation, one at a time, on inputs that no score has seen."""
        model, inputs = self.subject.model, self.subject.inputs
        some = inputs[:: max(len(inputs) // self.network.measured, 1)][: self.network.measured]
        scores = lb.sensitivity(
            model.fn, self.plan, model.params, [(model.state, *x) for x in some], candidates=self.network.candidates,
            method="kl", cache=self.folder.piece(f"{self.network.name}/scored/measured"),
        )  # fmt: skip
        return {"scores": json.loads(scores.json())}

    def _quantized(self, name: str, rules: Mapping[str, str], recipe: str) -> dict[str, Any]:
        subject, model = self.subject, self.subject.model
        place = f"{self.network.name}/{name}".replace(" ", "_")
        fn, state = model.fn, model.state
        if recipe == QAT:
            assert subject.trained is not None
            plan, qparams = subject.trained(model, rules)
        else:
            qparams, plan, report = lb.quantize(
                fn, model.params, rules, state=state, batches=subject.batches, recipe=recipe,
                cache=self.folder.piece(place) / "solved",
            )  # fmt: skip
            fn, state = report.fn, report.state
        call, qparams = lb.execute(fn, plan), lb.prepare(plan, qparams)
        outputs = {
            part: np.concatenate([np.asarray(call(qparams, state, *x)) for x in given])
            for part, given in (("inputs", subject.inputs), ("labelled", subject.labelled))
        }
        found = per_input(outputs["inputs"], self._read(FLOAT, "inputs"), subject.unit)
        with atomic.replacing(self.folder.piece(place) / "compared.npz") as part, part.open("wb") as file:
            np.savez(file, **found._asdict())
        right = subject.right(outputs["labelled"], self._read(FLOAT, "labelled"))
        said = {"dB": found.decibels, "KL": found.divergence, "right %": 100 * float(np.mean(right))}
        return said | {"bits": stored_bits(plan), "rules": dict(rules)}

    def _save(self, name: str, part: str, outputs: Sequence[np.ndarray]) -> None:
        with atomic.replacing(self.folder.piece(f"{self.network.name}/{name}") / f"{part}.npy") as file:
            np.save(file, np.concatenate(outputs))

    def _read(self, name: str, part: str) -> np.ndarray:
        return np.load(self.folder.path / self.network.name / name / f"{part}.npy")


def stored_bits(plan: Plan) -> float:
    """Returns the mean stored bits of the weights that are quantized, scales included."""
    sites = {row.weight.key: row.weight for row in plan.quantized if row.weight is not None}
    return sum(map(weight_bits, sites.values())) / sum(math.prod(site.operand.shape) for site in sites.values())
