"""Walks a recipe from text to report. Finished steps are skipped, so the same command goes on where it stopped.

For each method, order and seed: learn the domains one after another; after each, score the held-out text of every
domain so far and of general text, fine-tune a copy on every end task so far, and append rows. Text and tasks are read,
and the model loaded, before anything is written: bad input leaves no half-made run.

Run folder: recipe.yaml (as resolved), environment.json, texts.json (what text it reads), rows.jsonl, times.jsonl (how long
things took; differs from run to run), sequences/METHOD.ORDER.seedN/domains/I-NAME/{final,curve.csv,capacity.json},
sequences/METHOD.ORDER.seedN/plugins (for ``eunoe.load_plugins``), matrix.csv, report.html.

Under ``torchrun`` the batches of post-training are divided between the processes (ranks.py); sums are then added in another
order, so other numbers of processes end in other bits, and the same number in the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eunoe import checkpoint, ranks
from eunoe.atomic import write_text
from eunoe.data.collate import Batch, LMBatches, Rows
from eunoe.data.corpus import Blocks, Part, load_blocks
from eunoe.data.files import refuse_missing
from eunoe.data.tasks import Task, check_task, draws, load_task
from eunoe.errors import EunoeError
from eunoe.evaluate.answers import answer
from eunoe.evaluate.evaluator import Score, eval_batches, hidden_states, lm_score
from eunoe.evaluate.retention import Retention
from eunoe.folder import claimed, derived_seed, finished, mark_finished, note_time, refuse_other
from eunoe.head import train_head
from eunoe.methods.base import Method
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import lm_loss
from eunoe.models.load import LanguageModel, load_lm, refuse_longer
from eunoe.plan import Cell, Plan, Sequence, resolve
from eunoe.plugins.capacity import capacity_report
from eunoe.progress import say
from eunoe.recipe import ModelSettings, Recipe, Study, as_path, recipe_of_run, refuse_inside
from eunoe.report.matrices import write_matrix
from eunoe.report.page import write_report
from eunoe.report.samples import Sample, read_samples, write_samples
from eunoe.report.schema import Row, append_rows, read_rows
from eunoe.study import run_study
from eunoe.train import Job, make_optimizer, restore, train, weights
from eunoe.transfer.finetune import encode_task

PROBE_BLOCKS = 2
ROUND = 10
"""Steps that a method's annealing needs at least in one epoch: with fewer to an epoch, several epochs make one round."""


@dataclass(frozen=True)
class Material:
    """What a run reads: blocks to learn, held-out batches, end tasks as token ids."""

    train: dict[str, Blocks]
    valid: dict[str, list[Batch]]
    tasks: dict[str, dict[int | None, tuple[Task, tuple[Rows, Rows]]]]
    """Domain -> seed of the few-shot draw (None: all rows) -> the end task and its rows."""
    retention: Retention | None = None
    """Measures what fine-tuning left of the pretrained model, where the recipe asks for it."""


def run(recipe: Recipe | Study, out: str | os.PathLike[str], command: str = "") -> Path:
    """Carry out ``recipe`` in the folder ``out`` (made if needed) and return the path of its report.

    Raises ``EunoeError`` for anything the user can mend, ``Interrupted`` when asked to stop (place saved).
    """
    out = as_path(out, "out")
    if isinstance(recipe, Study):
        return run_study(recipe, out, command)
    plan = resolve(recipe)
    _refuse_ranks(plan)
    refuse_inside(out, (source for source, *_ in _sources(plan.recipe)))
    refuse_other(plan.recipe, out, lambda old: resolve(old).recipe)
    for domain in plan.recipe.domains:
        if domain.task is not None:
            check_task(domain.task, f"task of {domain.name!r}")
    refuse_missing(_sources(plan.recipe))
    if finished(out):
        say(f"{out} is finished: every score of the recipe is there. Nothing was changed.")
        return out / "report.html"
    model = plan.recipe.model
    torch.manual_seed(plan.recipe.seeds[0])  # a head that is not trained yet starts at random
    lm = load_lm(model)
    material = read_material(plan, lm)
    started = _started_from(plan)
    with claimed(plan.recipe, out, command) if ranks.first() else nullcontext():
        if ranks.first():
            _refuse_other_sources(out, material, started)
            _drop_half_cell(out / "rows.jsonl", 2 + 3 * plan.recipe.evaluation.retention)
        ranks.wait()
        if model.head == "train":
            model = _with_head(plan, out)
            _head_rows(plan, material, lm, model, out)
        if plan.recipe.evaluation.retention:
            pretrained = load_lm(model) if model is not plan.recipe.model else lm
            kept = Retention(pretrained, {"general": material.valid["general"]})
            material = replace(material, retention=kept)
        for name, twin in plan.repeated.items():
            say(f"order {name} is {twin} once more: it is learnt and counted once, as {twin}")
        for sequence in plan.sequences:
            _walk(plan, sequence, material, model, out)
        if not ranks.first():
            return out / "report.html"
        write_matrix(read_rows(out / "rows.jsonl"), out / "matrix.csv")
        if plan.recipe.evaluation.prompts:
            files = [out / "sequences" / sequence.folder / "samples.jsonl" for sequence in plan.sequences]
            write_samples(out / "samples.jsonl", (sample for file in files for sample in read_samples(file)))
        report = write_report([out])
        mark_finished(out)
    return report


def _refuse_ranks(plan: Plan) -> None:
    """What several processes cannot do."""
    world = ranks.world()
    if world > 1 and plan.recipe.model.head == "train":
        raise EunoeError("model.head: train is for one process. Train the head first, then give its folder to the run of several: "
                         "--model.head pretrained --model.patch RUN/head.")  # fmt: skip
    for sequence in plan.sequences:
        batch, micro = sequence.training.batch, sequence.training.micro_batch or sequence.training.batch
        least = batch % micro or micro
        if least < world:
            raise EunoeError(f"{world} processes share each micro-batch, but the smallest holds {least} blocks (batch {batch}, micro_batch "
                             f"{micro}). Give training.batch and training.micro_batch at least {world}, or start fewer.")  # fmt: skip


def _sources(recipe: Recipe) -> list[tuple[str, str | None, bool]]:
    """Every file or folder that a run will read, in the order of the recipe, as ``refuse_missing`` takes them."""
    corpora = [domain.corpus for domain in recipe.domains] + (recipe.head.corpora if recipe.head else [])
    corpora += [recipe.general] if recipe.general else []
    tasks = [domain.task for domain in recipe.domains if domain.task is not None]
    found = [(s, corpus.files, False) for corpus in corpora for s in (corpus.source, corpus.valid) if s is not None]
    return found + [(s, None, True) for task in tasks for s in (task.train, task.dev, task.test) if s is not None]


def read_material(plan: Plan, lm: LanguageModel) -> Material:
    """Read, tokenise and check all text and tasks of a plan; raises ``EunoeError`` before anything is trained."""
    recipe, rate = plan.recipe, plan.recipe.training.mask_rate
    used = {name for sequence in plan.sequences for name in sequence.order}
    refuse_longer(lm, recipe.training.block, "recipe.training.block")
    if recipe.head is not None:
        refuse_longer(lm, recipe.head.block, "recipe.head.block")
        for corpus in recipe.head.corpora:
            load_blocks(corpus, lm.tokenizer, recipe.head.block, "train")
    if recipe.evaluation.prompts and lm.objective != "causal":
        raise EunoeError(f"recipe.evaluation.prompts is given, but {lm.name!r} is a masked LM, which continues no text. Leave the "
                         "prompts out, or name a causal LM.")  # fmt: skip
    train_blocks, valid = {}, {}
    tasks: dict[str, dict[int | None, tuple[Task, tuple[Rows, Rows]]]] = {}
    for domain in recipe.domains:
        if domain.name not in used:
            continue
        train_blocks[domain.name] = load_blocks(domain.corpus, lm.tokenizer, recipe.training.block, "train")
        held_out = load_blocks(domain.corpus, lm.tokenizer, recipe.training.block, "valid").take(
            recipe.evaluation.blocks
        )
        valid[domain.name] = eval_batches(lm, held_out, recipe.evaluation.batch, rate)
        if domain.task is not None:
            tasks[domain.name] = {}
            for settings in draws(domain.task):
                task = load_task(domain.name, settings, domain.corpus)
                tasks[domain.name][task.shots_seed] = (task, encode_task(lm, task, plan.transfer_settings))
    if recipe.general is not None:
        part: Part = "valid" if recipe.general.valid is not None else "all"
        general = load_blocks(recipe.general, lm.tokenizer, recipe.training.block, part).take(recipe.evaluation.blocks)
        valid["general"] = eval_batches(lm, general, recipe.evaluation.batch, rate)
    return Material(train_blocks, valid, tasks)


# -- one sequence -----------------------------------------------------------------------------------------------
def build_sequence(sequence: Sequence, model: ModelSettings) -> tuple[LanguageModel, Method]:
    """The pretrained model and the sequence's method around it, before any domain."""
    lm = load_lm(model)
    torch.manual_seed(sequence.seed)
    if sequence.method is None:
        return lm, Method(lm.model, None, list(sequence.order))
    return lm, sequence.method.method(lm.model, sequence.settings, list(sequence.order))


def domain_folder(out: Path, sequence: Sequence, i: int) -> Path:
    """Where the state after domain ``i`` of a sequence lies."""
    return out / "sequences" / sequence.folder / "domains" / f"{i}-{sequence.order[i]}"


def _walk(plan: Plan, sequence: Sequence, material: Material, model: ModelSettings, out: Path) -> None:
    """Learn and score one sequence, skipping what is done."""
    owed = _owed(plan, sequence, out)
    ranks.wait()  # before the first row is written: all processes owe the same
    if not owed:
        return
    lm, method = build_sequence(sequence, model)
    if sequence is plan.sequences[0]:  # the pretrained model, which answers alike in every order and with every seed
        _answer(plan, sequence, lm, method, out, ())
    _measure(plan, sequence, lm, method, material, out, [c for c in owed if not c.learnt], 0)
    if sequence.method is None:
        return
    for i in range(len(sequence.order)):
        folder = domain_folder(out, sequence, i)
        if not checkpoint.whole(folder / "final"):
            _learn(plan, sequence, lm, method, material, out, i)
            ranks.wait()  # until it is written
        if ranks.first():
            shutil.rmtree(folder / "steps", ignore_errors=True)
        # what was just learnt is read back too: a run that was killed and one that was not continue from the same bits
        steps = _restore_domain(lm, method, folder)
        if ranks.first():
            _write_beside(sequence, method, out, i)
        if i == len(sequence.order) - 1:  # before the rows: what has all its rows is not walked again
            _answer(plan, sequence, lm, method, out, sequence.order)
        _measure(plan, sequence, lm, method, material, out, [c for c in owed if len(c.learnt) == i + 1], steps)


def _learn(
    plan: Plan, sequence: Sequence, lm: LanguageModel, method: Method, material: Material, out: Path, i: int
) -> None:
    """Post-train domain ``i`` and save the state after it."""
    domain, folder, settings = sequence.order[i], domain_folder(out, sequence, i), sequence.training
    blocks = material.train[domain]
    steps = settings.steps or max(1, round(len(blocks) * settings.epochs / settings.batch))
    seed = derived_seed(sequence.seed, "learn", str(i), domain)
    batches = LMBatches(blocks, lm.objective, lm.mask_id, len(lm.tokenizer), settings.batch, steps, seed,
                        settings.micro_batch, settings.mask_rate, ranks.rank(), ranks.world())  # fmt: skip
    method.epochs = min(steps * settings.batch / len(blocks), max(1.0, steps / ROUND))
    done = train(Job(
        name=f"{sequence.label} · seed {sequence.seed} · {domain}", domain=domain, model=lm.model, batches=batches, loss=lm_loss,
        settings=settings, seed=seed, method=method, folder=folder / "steps",
        optimizer=lambda m: make_optimizer(settings.optimizer, m, settings.lr, steps),
    ))  # fmt: skip
    for note in done.notes:
        say(f"passed over: {note}")
    method.activate(domain)
    probe = material.valid[domain][0]["input_ids"][:PROBE_BLOCKS]
    states = hidden_states(lm.model, anatomy(lm.model).base, probe)
    if not ranks.first():
        return
    write_text(folder / "curve.csv", done.curve_csv())
    checkpoint.save(folder / "final", {
        "weights": weights(lm.model), "method": method.state_dict(), "steps": done.steps,
        "probe": {"input_ids": probe, "states": states, "reads": reads_hash(lm, method, domain)},
    })  # fmt: skip
    note_time(out, f"{sequence.folder}/{i}-{domain}", done.seconds, done.tokens)


def _write_beside(sequence: Sequence, method: Method, out: Path, i: int) -> None:
    """What stands beside the state after domain ``i``: the room left, and after the last one the plug-ins.

    Made from the state, after it, so that a run that was killed in between makes them when it goes on.
    """
    room_file = domain_folder(out, sequence, i) / "capacity.json"
    if not room_file.is_file() and (room := method.capacity()):
        warning = capacity_report(room)["warning"]
        if warning:
            say(f"{sequence.label} · seed {sequence.seed}: {warning}")
        write_text(room_file, json.dumps(room) + "\n")
    plugins = out / "sequences" / sequence.folder / "plugins"
    if i == len(sequence.order) - 1 and not plugins.is_dir():
        partial = plugins.with_name("plugins.partial")
        shutil.rmtree(partial, ignore_errors=True)
        method.publish(partial)
        if partial.is_dir():
            partial.rename(plugins)


def _restore_domain(lm: LanguageModel, method: Method, folder: Path) -> int:
    held = checkpoint.load(folder / "final")
    restore(lm.model, held.groups["weights"], str(held.folder))
    method.load_state_dict(held.groups["method"])
    return int(held.groups["steps"])


def reads_hash(lm: LanguageModel, method: Method, domain: str) -> str | None:
    """SHA-256 over every bit of a weight that the domain's output reads; None where the method promises nothing."""
    if method.forgets:
        return None
    named, total = dict(lm.model.named_parameters()), hashlib.sha256()
    for name, read in sorted(method.reads(domain).items()):
        held = named[name].detach().cpu()[read.cpu()].contiguous()
        total.update(name.encode() + held.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _measure(
    plan: Plan, sequence: Sequence, lm: LanguageModel, method: Method, material: Material, out: Path,
    cells: list[Cell], steps: int,
) -> None:  # fmt: skip
    """Score the cells that are owed and append their rows, one cell at a time."""
    for cell in cells:
        began = time.monotonic()
        if cell.end_task:
            task, rows = material.tasks[cell.task][cell.shots_seed]
            seed = derived_seed(sequence.seed, "task", cell.task)
            domain = cell.task if cell.task in cell.learnt else None
            fine = plan.transfer.transfer(
                lm, method, domain, task, rows, plan.transfer_settings, seed, plan.recipe.evaluation.batch
            )
            found, taken, transfer = fine.scores, fine.steps, plan.transfer_name
            if material.retention is not None:
                method.activate(domain)
                found = [*found, *material.retention.of(fine.model.trunk, lm.model)]
        else:
            # general text belongs to no domain: a method with plug-ins reads it with the plug-ins off
            method.activate(cell.task if cell.task in cell.learnt else None)
            found, taken, transfer = [lm_score(lm.model, material.valid[cell.task])], steps, None
        if not ranks.first():
            continue
        append_rows(out / "rows.jsonl", [
            _row(plan, sequence, cell, score, transfer=transfer, shots_seed=cell.shots_seed, steps=taken) for score in found
        ])  # fmt: skip
        note_time(
            out,
            f"{sequence.folder}/{len(cell.learnt)}:{cell.task}{'' if cell.end_task else ' (text)'}",
            time.monotonic() - began,
            0,
        )


def _answer(
    plan: Plan, sequence: Sequence, lm: LanguageModel, method: Method, out: Path, learnt: tuple[str, ...]
) -> None:
    """Put the recipe's prompts to the model as it stands: as no domain, and as the last one where plug-ins choose."""
    if not ranks.first():
        return
    asked = plan.recipe.evaluation
    found = []
    for domain in (None,) if method.forgets else (None, learnt[-1]):
        method.activate(domain)
        found += [
            Sample(method=sequence.label, order=sequence.order_name, seed=sequence.seed, learnt=learnt, reads_as=domain,
                   prompt=prompt, answer=answer(lm, prompt, asked.answer_tokens)) for prompt in asked.prompts
        ]  # fmt: skip
    if found:
        write_samples(out / "sequences" / sequence.folder / "samples.jsonl", found)


def _row(plan: Plan, sequence: Sequence, cell: Cell, score: Score, **more: Any) -> Row:
    return Row(run=plan.recipe.name, method=sequence.label, order=sequence.order_name, seed=sequence.seed, learnt=cell.learnt,
               task=cell.task, metric=score.metric, value=score.value, n=score.n, detail=score.detail, **more)  # fmt: skip


def _owed(plan: Plan, sequence: Sequence, out: Path) -> list[Cell]:
    """The measurements of a sequence that have no rows yet."""
    mine = (sequence.label, sequence.order_name, sequence.seed)
    held = {
        (row.learnt, row.task, row.transfer is not None, row.shots_seed)
        for row in read_rows(out / "rows.jsonl")
        if (row.method, row.order, row.seed) == mine
    }
    return [
        cell for cell in plan.cells(sequence) if (cell.learnt, cell.task, cell.end_task, cell.shots_seed) not in held
    ]


# -- the LM head ------------------------------------------------------------------------------------------------
def model_settings(plan: Plan, out: Path) -> ModelSettings:
    """How the run's model is loaded once its LM head, if it asked for one, is trained."""
    model = plan.recipe.model
    return replace(model, head="pretrained", patch=str(out / "head")) if model.head == "train" else model


def _with_head(plan: Plan, out: Path) -> ModelSettings:
    """Train the LM head that the recipe asks for and return the model settings that read it."""
    recipe = plan.recipe
    assert recipe.head is not None  # recipe._check
    done = train_head(recipe.model, recipe.head, out / "head", recipe.seeds[0])
    if done is not None:
        note_time(out, "head", done.seconds, done.tokens)
    return model_settings(plan, out)


def _head_rows(plan: Plan, material: Material, start: LanguageModel, after: ModelSettings, out: Path) -> None:
    """General LM loss with the head as it started and as it was trained."""
    held = {row.method for row in read_rows(out / "rows.jsonl")}
    for label in ("head-start", "head-trained"):
        if label in held or "general" not in material.valid:
            continue
        lm = start if label == "head-start" else load_lm(after)
        score = lm_score(lm.model, material.valid["general"])
        say(f"{label}: LM loss on general text {score.value:.3f} nats over {score.n:,} asked tokens")
        append_rows(out / "rows.jsonl", [Row(
            run=plan.recipe.name, method=label, transfer=None, order="none", seed=plan.recipe.seeds[0], shots_seed=None, learnt=(),
            task="general", metric=score.metric, value=score.value, n=score.n, steps=0,
        )])  # fmt: skip


# -- of a run folder ----------------------------------------------------------------------------------------------
def load_plan(out: Path) -> Plan:
    """The plan of a run folder, from its recipe.yaml; raises ``EunoeError`` if there is none."""
    recipe = recipe_of_run(out)
    if isinstance(recipe, Study):
        raise EunoeError(
            f"{out} is a fine-tuning study, which learns no domains. Give the folder of a run over domains."
        )
    return resolve(recipe)


def _started_from(plan: Plan) -> dict[str, str]:
    """SHA-256 of the files that a method starts from, by its label; empty for most.

    Every method is made once, around the untrained model: its options may not fit it, and nothing is written yet.
    """
    found: dict[str, str] = {}
    for sequence in {s.label: s for s in plan.sequences if s.method is not None}.values():
        assert sequence.method is not None
        files = sequence.method.method.sources(sequence.settings)
        try:
            build_sequence(sequence, plan.recipe.model)
        except (RuntimeError, MemoryError) as error:  # what torch raises where there is not enough memory
            raise EunoeError(f"the method {sequence.label} cannot be made around {plan.recipe.model.name!r}: {str(error).splitlines()[0]}. "
                             "Give it smaller sizes, or a machine with more memory.") from error  # fmt: skip
        if files:
            found[sequence.label] = _sha256(file.read_bytes() for file in files)
    return found


def _refuse_other_sources(out: Path, material: Material, started: Mapping[str, str]) -> None:
    """Note what the run reads, or raise if a run that goes on would read something else than it began with."""
    found = {name: blocks.digest for name, blocks in material.train.items()}
    for name, batches in material.valid.items():
        found[f"{name} (held out)"] = _sha256(batch["input_ids"].tolist() for batch in batches)
    for name, samples in material.tasks.items():
        found[f"{name} (end task)"] = _sha256(
            [rows.inputs, rows.labels.tolist()] for _, parts in samples.values() for rows in parts
        )
    found |= {f"{label} (plug-ins)": digest for label, digest in started.items()}
    file = out / "texts.json"
    if file.is_file():
        held = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name, digest in found.items() if held.get(name, digest) != digest]
        if changed:
            raise EunoeError(f"what {out} was begun with is no longer the same: {', '.join(changed)}. The files have changed since. Put "
                             "the old ones back, or choose another --out.")  # fmt: skip
    elif not (out / "rows.jsonl").is_file():  # a run begun before there was this file goes on without
        write_text(file, json.dumps(found, indent=1) + "\n")


def _sha256(parts: Iterable[Any]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(repr(part).encode())
    return total.hexdigest()


def _drop_half_cell(file: Path, size: int) -> None:
    """Cut off the last end task if fewer than its ``size`` rows are there: a kill can split one write between pages."""
    rows = read_rows(file)
    cells = [(r.method, r.order, r.seed, r.learnt, r.task, r.transfer, r.shots_seed) for r in rows[-size:]]
    torn = next((n for n in range(len(cells)) if cells[-1 - n] != cells[-1]), len(cells))
    if rows and rows[-1].transfer is not None and torn < size:
        os.truncate(file, sum(map(len, file.read_bytes().splitlines(keepends=True)[: len(rows) - torn])))


__all__ = [
    "Material",
    "build_sequence",
    "domain_folder",
    "load_plan",
    "model_settings",
    "read_material",
    "reads_hash",
    "run",
]
