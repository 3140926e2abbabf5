"""A recipe over domains made ready: names looked up, options typed, its work cut into cells.

All that a recipe alone can get wrong is refused in ``resolve``, before any text is read; what text, tasks and model can get wrong
in ``RunPlan.prepare``, before anything is written. The cells: learn stage i of a sequence; score one text or one end task after
it; put the prompts to the model; train an LM head first, where the encoder has none.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eunoe import ranks, transfer
from eunoe.atomic import write_text
from eunoe.cells import Board, Cell
from eunoe.choices import choose, written_out
from eunoe.data.cache import sha256
from eunoe.data.files import refuse_missing
from eunoe.data.tasks import check_task, draw_seed, draws
from eunoe.errors import EunoeError
from eunoe.evaluate.answers import answer
from eunoe.evaluate.evaluator import Score, lm_score
from eunoe.evaluate.retention import Retention
from eunoe.folder import derived_seed, file_hash, note_time, recorded, says_whose
from eunoe.head import train_head
from eunoe.lookup import lookup
from eunoe.material import Material, read_material
from eunoe.methods import choose_method
from eunoe.methods.facts import facts_for_report
from eunoe.models.files import PATCH
from eunoe.models.load import pretrained
from eunoe.optim.schedules import SCHEDULES
from eunoe.progress import say
from eunoe.recipe import LoopSettings, ModelSettings, Recipe, TrainingSettings, build, check_names, recipe_of_run
from eunoe.report.matrices import write_matrix
from eunoe.report.samples import Sample, read_samples, write_samples
from eunoe.report.schema import Row, read_rows, to_line
from eunoe.sequence import Sequence as Way
from eunoe.sequence import Walk
from eunoe.transfer import Start

BASE = "base"
"""Stands for the pretrained model, before any domain, wherever rows name a method."""
FACTS = "methods.json"


@dataclass(frozen=True)
class Learn:
    """Learn stage ``i`` of a sequence."""

    way: Way
    i: int


@dataclass(frozen=True)
class Measure:
    """Score the state after stage ``i``: the LM loss of a domain's held-out text (or of general text), or an end task."""

    way: Way
    i: int
    learnt: tuple[str, ...]
    task: str
    end_task: bool
    shots_seed: int | None = None
    """Seed of the few-shot draw that an end task is fine-tuned on; None: all rows, or no end task."""


@dataclass(frozen=True)
class Publish:
    """After the last stage: what a plain script needs, and what the report says of the method."""

    way: Way


@dataclass(frozen=True)
class Ask:
    """Put the recipe's prompts to the model after stage ``i``."""

    way: Way
    i: int


@dataclass(frozen=True)
class Head:
    """Train the LM head, and score general text with it as it started and as it was trained."""


@dataclass
class RunPlan:
    """A resolved recipe. ``recipe`` has every option of methods, transfer and optimizers written out."""

    recipe: Recipe
    transfer_name: str
    transfer: transfer.Entry
    transfer_settings: Any
    sequences: tuple[Way, ...]
    repeated: dict[str, str]
    """Orders that are another one once more, with its name. They make no sequences: their scores would be the other's to the
    bit, and counted twice would make an interval narrower than it is."""
    out: Path = field(default_factory=Path)
    material: Material | None = None
    _walk: Walk | None = None
    _measure_kept: Retention | None = None
    _before: dict[tuple[object, ...], list[Row]] | None = None

    # -- what is owed ------------------------------------------------------------------------------------------------
    def cells(self, board: Board) -> list[Cell]:
        """All cells, in the order of their rows."""
        head = ("head",) if self.recipe.model.head == "train" else ()
        made = [Cell("head", (), Head(), "head")] if head else []
        for k, way in enumerate(self.sequences):
            made += [dataclasses.replace(cell, needs=(*head, *cell.needs)) for cell in self._cells(way, first=k == 0)]
        return made

    def _cells(self, way: Way, first: bool) -> Iterator[Cell]:
        general, prompts = ("general",) if self.recipe.general else (), self.recipe.evaluation.prompts
        tasks = {d.name: [draw_seed(t) for t in draws(d.task)] for d in self.recipe.domains if d.task}
        if prompts and first:  # the pretrained model, which answers alike in every order and with every seed
            yield self._cell(Ask(way, -1))
        stages = range(len(way.stages))
        if not stages:  # the pretrained model, and methods that learn no stage: a reference line
            yield from (self._cell(Measure(way, -1, (), name, False)) for name in [*dict.fromkeys(way.order), *general])
            if self.recipe.evaluation.base or way.method is not None:
                yield from (self._cell(Measure(way, -1, (), name, True, seed))
                            for name in dict.fromkeys(way.order) for seed in tasks.get(name, ()))  # fmt: skip
        for i in stages:
            learnt = way.learnt(i)
            yield Cell(way.stage_key(i), way.needs(i), Learn(way, i), way.folder)
            if i == stages[-1]:
                yield Cell(f"{way.folder}/publish", way.holds(i), Publish(way), way.folder)
            if prompts and i == stages[-1]:
                yield self._cell(Ask(way, i))
            seen = list(dict.fromkeys(learnt))
            yield from (self._cell(Measure(way, i, learnt, name, False)) for name in [*seen, *general])
            ends = self.recipe.evaluation.matrix == "full" or i == stages[-1]
            for name in seen if ends else dict.fromkeys(way.stages[i]):
                yield from (self._cell(Measure(way, i, learnt, name, True, seed)) for seed in tasks.get(name, ()))

    def _cell(self, work: Measure | Ask) -> Cell:
        way, i = work.way, work.i
        if isinstance(work, Ask):
            name = "prompts"
        else:
            draw = "" if work.shots_seed is None else f".shots{work.shots_seed}"
            name = f"{work.task}.task{draw}" if work.end_task else f"{work.task}.text"
        return Cell(f"{way.folder}/scores/{i + 1}/{name}", way.holds(i) if i >= 0 else (), work, way.folder)

    # -- before anything is written ------------------------------------------------------------------------------------
    def prepare(self, out: Path) -> dict[str, str]:
        recipe, self.out = self.recipe, out
        for domain in recipe.domains:
            if domain.task is not None:
                check_task(domain.task, f"task of {domain.name!r}")
        refuse_missing(self._read())
        self.lm = pretrained(recipe.model, recipe.seeds[0])  # a head that is not trained yet starts at random
        reads: dict[str, str] = {"model": self.lm.identity}
        extra: dict[str, int] = {}
        for way in {way.label: way for way in self.sequences if way.method is not None}.values():
            assert way.method is not None
            extra[way.label] = Walk(way, recipe.model, out).method.extra_tokens  # options may not fit the model
            # plug-ins that a method starts from decide what it learns, as its text does
            if files := way.method.sources():
                reads[f"{way.label} (plug-ins)"] = sha256(file.read_bytes().hex() for file in files)
        mixes = any("general" in way.method.reads for way in self.sequences if way.method)
        used = {name for way in self.sequences for name in way.order}
        self.material = read_material(
            recipe,
            used,
            self.lm,
            self.transfer,
            self.transfer_settings,
            extra,
            mixes,
            {way.training.batch for way in self.sequences},
        )
        if self.material.tasks:
            reads |= {
                f"{what} (transfer)": value for what, value in self.transfer.reads(self.transfer_settings).items()
            }
        for name, twin in self.repeated.items():
            say(f"order {name} is {twin} once more: it is learnt and counted once, as {twin}")
        return reads | self.material.digests()

    def weights(self) -> int:
        return sum(p.numel() for p in self.lm.model.parameters())

    def sources(self) -> list[str]:
        """Every file or folder that a run will read, in the order of the recipe."""
        return [source for source, *_ in self._read()]

    def _read(self) -> list[tuple[str, str | None, bool]]:
        """Each source, the pattern of its files, and whether its rows are labelled."""
        recipe = self.recipe
        corpora = [domain.corpus for domain in recipe.domains] + (recipe.head.corpora if recipe.head else [])
        corpora += [recipe.general] if recipe.general else []
        tasks = [domain.task for domain in recipe.domains if domain.task is not None]
        text = [(s, corpus.files, False) for corpus in corpora for s in (corpus.source, corpus.valid) if s is not None]
        text += [(task.unlabelled, None, False) for task in tasks if task.unlabelled is not None]
        return text + [(s, None, True) for task in tasks for s in (task.train, task.dev, task.test) if s is not None]

    def refuse_ranks(self) -> None:
        world = ranks.world()
        if world > 1 and self.recipe.model.head == "train":
            raise EunoeError("model.head: train is for one process. Train the head first, then give its folder to the run of several: "
                             "--model.head pretrained --model.patch RUN/head.")  # fmt: skip
        for way in self.sequences:
            batch, micro = way.training.batch, way.training.micro_batch or way.training.batch
            least = batch % micro or micro
            if least < world:
                raise EunoeError(f"{world} processes share each micro-batch, but the smallest holds {least} blocks (batch {batch}, "
                                 f"micro_batch {micro}). Set both to at least {world}, or start fewer.")  # fmt: skip

    # -- one cell ------------------------------------------------------------------------------------------------------
    def begin(self, board: Board) -> None:
        self._rows_before(board)  # put aside before rows.jsonl is gathered anew
        self._write_facts(board)

    def carry_out(self, cell: Cell, board: Board) -> list[str]:
        work = cell.work
        if isinstance(work, Head):
            return self._head(board)
        walk = self.walk(work.way, board.run)
        assert self.material is not None
        if isinstance(work, Learn):
            walk.learn(work.i, self.material)
            ranks.wait()  # until it is written
            walk.own(work.i)
            return walk.write_beside(work.i) if ranks.first() else []
        if isinstance(work, Publish):
            walk.after(len(work.way.stages) - 1)
            return walk.publish() if ranks.first() else []
        steps = walk.after(work.i)
        if isinstance(work, Ask):
            return self._ask(walk, work, cell)
        began, kept = time.monotonic(), self._rows_before(board).get(_old_key(work))
        rows = kept or self._measure(walk, work, cell, board, steps)
        if ranks.first():
            write_text(self.out / cell.key / "rows.jsonl", "".join(map(to_line, rows)))
            what = f"{work.way.folder.removeprefix('sequences/')}/{len(work.learnt)}:{work.task}{'' if work.end_task else ' (text)'}"
            note_time(self.out, what, time.monotonic() - began, 0)
        return [f"{cell.key}/rows.jsonl"]

    def drop_damaged(self, board: Board) -> None:
        for cell in self.cells(board):
            final = self.out / cell.key / "final"
            if not isinstance(cell.work, Learn) or not final.exists():
                continue
            if (why := self.walk(cell.work.way, board.run).damage(cell.work.i)) is not None:
                say(f"{why} {final} is deleted, and that stage learnt again.")
                shutil.rmtree(final)
                (self.out / cell.key / "cell.json").unlink(missing_ok=True)

    def walk(self, way: Way, run: str | None) -> Walk:
        """The model and method of a sequence; the last one is kept, as the next cell is most likely of the same."""
        if self._walk is None or self._walk.sequence != way:
            self._walk = None  # before another is made: two would need twice the memory
            self._walk = Walk(way, model_settings(self.recipe, self.out), self.out, run)
        return self._walk

    def _measure(self, walk: Walk, work: Measure, cell: Cell, board: Board, steps: int) -> list[Row]:
        assert self.material is not None
        domain = work.way.reads_as(work.task, work.i)  # general text belongs to no domain
        if not work.end_task:
            score = lm_score(
                walk.lm.model, self.material.valid[work.task], lambda batch: walk.method.log_probs(batch, domain)
            )
            return [self._row(work, score, transfer=None, steps=steps)]
        task = self.material.tasks[work.task][work.shots_seed]
        tuned = self.transfer.transfer(Start(
            lm=walk.lm, method=walk.method, domain=domain, task=task, seed=derived_seed(work.way.seed, "task", work.task),
            batch=self.recipe.evaluation.batch, folder=self.out / cell.key / "steps" if ranks.world() == 1 else None,
            name=f"{work.way.label} · seed {work.way.seed} · end task {work.task}",
            identity={"run": board.run or "", "cell": cell.key, "start": walk.start},
        ), self.transfer_settings)  # fmt: skip
        scores = list(tuned.scores)
        if self.recipe.evaluation.retention and tuned.trunk is not None:
            walk.method.activate(domain)
            scores += self._retention().measure(tuned.trunk, walk.lm.model)
        return [
            self._row(
                work,
                score,
                transfer=self.transfer_name,
                steps=tuned.steps,
                shots_seed=work.shots_seed,
                short_shots=task.short or None,
            )
            for score in scores
        ]

    def _retention(self) -> Retention:
        """What measures how much of the pretrained model fine-tuning preserves (with its trained head, where the recipe has one)."""
        if self._measure_kept is None:
            assert self.material is not None
            lm = pretrained(model_settings(self.recipe, self.out))
            lm.model.to(ranks.device())
            self._measure_kept = Retention(lm, {"general": self.material.valid["general"]})
        return self._measure_kept

    def _row(self, work: Measure, score: Score, **more: Any) -> Row:
        way, together = work.way, len(work.way.stages[work.i]) if work.i >= 0 else 1
        return Row(run=self.recipe.name, method=way.label, order=way.order_name, seed=way.seed, learnt=work.learnt, task=work.task,
                   metric=score.metric, value=score.value, n=score.n, detail=score.detail, at_once=together if together > 1 else None,
                   **{"shots_seed": None, **more})  # fmt: skip

    def _ask(self, walk: Walk, work: Ask, cell: Cell) -> list[str]:
        """Prompts to the model as it stands: as the domain that a prompt is of, or else as no domain and as the last one, where the
        method needs to be told."""
        if not ranks.first():
            return []
        asked, way, learnt = self.recipe.evaluation, work.way, work.way.learnt(work.i)
        samples = []
        for prompt in asked.asked:
            last = way.reads_as(learnt[-1], work.i) if learnt else None
            named = (None, last) if prompt.domain is None else (way.reads_as(prompt.domain, work.i),)
            for domain in dict.fromkeys(named if walk.method.needs_domain else (None,)):
                walk.method.activate(domain)
                said = answer(walk.lm, prompt.text, asked.answer_tokens)
                samples.append(Sample(method=way.label, order=way.order_name, seed=way.seed, learnt=learnt, reads_as=domain,
                                      prompt=prompt.text, answer=said))  # fmt: skip
        write_samples(self.out / cell.key / "samples.jsonl", samples)
        return [f"{cell.key}/samples.jsonl"]

    # -- the LM head ---------------------------------------------------------------------------------------------------
    def _head(self, board: Board) -> list[str]:
        recipe, folder = self.recipe, self.out / "head"
        assert recipe.head is not None  # check_recipe
        assert self.material is not None
        patch = folder / PATCH
        if recorded(self.out, "head").get(f"head/{PATCH}", file_hash(patch)) != file_hash(patch):
            say(f"{patch} is not what was trained: it is trained again")
            patch.unlink(missing_ok=True)
        done = train_head(recipe.model, recipe.head, folder, recipe.seeds[0], {"run": board.run or "", "cell": "head"})
        if done is not None:
            note_time(self.out, "head", done.seconds, done.tokens)
        files, rows = [f"head/{PATCH}", "head/curve.csv", "head/rows.jsonl"], []
        trained = model_settings(recipe, self.out)
        for label, lm in (
            (("head-start", self.lm), ("head-trained", pretrained(trained))) if "general" in self.material.valid else ()
        ):
            score = lm_score(lm.model.to(ranks.device()), self.material.valid["general"])
            say(f"{label}: LM loss on general text {score.value:.3f} nats over {score.n:,} target tokens")
            rows.append(Row(run=recipe.name, method=label, transfer=None, order="none", seed=recipe.seeds[0], shots_seed=None, learnt=(),
                            task="general", metric=score.metric, value=score.value, n=score.n, steps=0))  # fmt: skip
        write_text(folder / "rows.jsonl", "".join(map(to_line, rows)))
        return files

    # -- the end ---------------------------------------------------------------------------------------------------------
    def finish(self, board: Board, fill: bool) -> list[str]:
        write_matrix(read_rows(board.out / "rows.jsonl"), board.out / "matrix.csv")
        if self.recipe.evaluation.prompts:
            files = [board.out / cell.key / "samples.jsonl" for cell in self.cells(board) if isinstance(cell.work, Ask)]
            write_samples(board.out / "samples.jsonl", (sample for file in files for sample in read_samples(file)))
        self._write_facts(board)
        return ["matrix.csv", "samples.jsonl", FACTS]

    def _write_facts(self, board: Board) -> None:
        """What the methods are, for the report, which knows no table of them (it needs torch)."""
        facts = {
            way.label: facts_for_report(way.method, way.order)
            for way in reversed(self.sequences)
            if way.method is not None
        }
        text = json.dumps(dict(sorted(facts.items())), ensure_ascii=False, indent=1) + "\n"
        file = board.out / FACTS
        if ranks.first() and not (file.is_file() and file.read_bytes() == text.encode()):
            write_text(file, text)

    def _rows_before(self, board: Board) -> dict[tuple[object, ...], list[Row]]:
        """The rows of a run that a version before 0.2 began, which kept them in one file; put aside once, then read from there."""
        if self._before is None:
            aside, rows = board.out / "rows.before.jsonl", board.out / "rows.jsonl"
            if not says_whose(board.out) and rows.is_file() and not aside.is_file():
                write_text(aside, rows.read_text(encoding="utf-8"))
            self._before = {}
            for row in read_rows(aside):
                key = (row.method, row.order, row.seed, row.learnt, row.task, row.transfer is not None, row.shots_seed)
                self._before.setdefault(key, []).append(row)
            # an end task leaves several rows; with one missing all of them are scored again
            size = 2 + 3 * self.recipe.evaluation.retention
            self._before = {key: rows for key, rows in self._before.items() if not key[5] or len(rows) >= size}
        return self._before


def _old_key(work: Measure) -> tuple[object, ...]:
    way = work.way
    return (way.label, way.order_name, way.seed, work.learnt, work.task, work.end_task, work.shots_seed)


def load_run(out: Path) -> RunPlan:
    """The plan of a run over domains, from its folder; raises ``EunoeError`` where there is none, or a study."""
    recipe = recipe_of_run(out)
    if not isinstance(recipe, Recipe):
        raise EunoeError(f"{out} is a fine-tuning study: it learns no domains, so it has nothing to verify or route. Give the folder of a "
                         "run over domains, as eunoe demo makes it.")  # fmt: skip
    return resolve(recipe)


def model_settings(recipe: Recipe, out: Path) -> ModelSettings:
    """How the run's model is loaded once its LM head, if it asked for one, is trained."""
    model = recipe.model
    return dataclasses.replace(model, head="pretrained", patch=str(out / "head")) if model.head == "train" else model


# -- resolving ----------------------------------------------------------------------------------------------------------
def resolve(recipe: Recipe) -> RunPlan:
    """Look up every name and type every option; raises ``EunoeError`` (close matches given) for what is unknown."""
    _check_schedule(recipe.training, "recipe.training")
    orders = {k: tuple(v) for k, v in recipe.orders.items()} or {"given": tuple(d.name for d in recipe.domains)}
    chosen: list[tuple[str, Any, TrainingSettings]] = [(BASE, None, recipe.training)]
    kept: list[dict[str, Any]] = []
    for i, value in enumerate(recipe.methods):
        where = f"recipe.methods[{i}]"
        own = dict(value) if isinstance(value, dict) else {"name": value}
        named, training = "label" in own, _training(own.pop("training", None), recipe, where)
        label: Any = own.pop("label", None)
        method = choose_method(own if len(own) > 1 else own["name"] if isinstance(own.get("name"), str) else own, where)
        label = label if named else method.name
        chosen.append((label, method, training))
        kept.append({**method.written_out(), "label": label, "training": dataclasses.asdict(training)})
        for name, order in orders.items():
            if len(set(order)) < len(order) and not method.returns:
                raise EunoeError(f"recipe.orders.{name} names a domain again, which {label} cannot learn twice. Leave the order or the "
                                 "method out.")  # fmt: skip
            # asked now, so that methods that cannot go through an order are refused before anything runs
            method.stages(order)
    check_names([label for label, *_ in chosen[1:]], "method label")
    # two names for one order would count the same sequence twice in every average
    first: dict[tuple[str, ...], str] = {}
    for order_name, order in orders.items():
        first.setdefault(order, order_name)
    # what a method that learns no stage scores is the same in every order, to the bit: it is scored in the first
    sequences = [Way(label, method, training, order_name, order, seed)
                 for k, (order, order_name) in enumerate(first.items()) for seed in recipe.seeds if recipe.domains
                 for label, method, training in chosen if k == 0 or method is None or method.stages(order)]  # fmt: skip
    name, entry, settings = choose(transfer.TRANSFERS, recipe.transfer, "recipe.transfer", "transfer")
    settings = entry.resolve(settings, "recipe.transfer")
    transfer.refuse_unread({d.name: d.task for d in recipe.domains if d.task is not None}, [name])
    full = dataclasses.replace(
        recipe, methods=kept, orders={k: list(v) for k, v in orders.items()}, scales={},
        transfer={"name": name, **dataclasses.asdict(settings)},
        training=dataclasses.replace(recipe.training, optimizer=written_out(recipe.training.optimizer, "recipe.training.optimizer")),
    )  # fmt: skip
    repeated = {name: first[order] for name, order in orders.items() if first[order] != name}
    return RunPlan(full, name, entry, settings, tuple(sequences), repeated)


def _training(change: Any, recipe: Recipe, where: str) -> TrainingSettings:
    """The recipe's post-training with a method's own settings over it."""
    training = dataclasses.replace(recipe.training)
    if change is not None:
        if not isinstance(change, dict):
            raise EunoeError(f"{where}.training: expected keys with values, received {change!r}.")
        training = build(TrainingSettings, {**dataclasses.asdict(recipe.training), **change}, f"{where}.training")
        _check_schedule(training, f"{where}.training")
        if training.block != recipe.training.block:
            raise EunoeError(f"{where}.training.block is {training.block}, but all methods read the same blocks: set "
                             f"recipe.training.block (now {recipe.training.block}).")  # fmt: skip
    training.optimizer = written_out(training.optimizer, f"{where}.training.optimizer")
    return training


def _check_schedule(loop: LoopSettings, where: str) -> None:
    lookup(SCHEDULES, loop.schedule, f"schedule in {where}")


__all__ = ["BASE", "Ask", "Learn", "Measure", "RunPlan", "load_run", "model_settings", "resolve"]
