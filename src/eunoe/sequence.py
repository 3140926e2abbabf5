"""One method on its way through its stages: build it around the pretrained model, restore it after a stage, learn, promise.

A ``Walk`` is a model and its method in the state after one stage. Runs (plan.py), ``eunoe verify`` and ``eunoe route`` all go
through it, so they see the same states. What was just learnt is read back too: a run that was killed and one that was not
continue from the same bits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eunoe import checkpoint, ranks
from eunoe.atomic import write_text
from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import joined
from eunoe.errors import EunoeError, Interrupted
from eunoe.evaluate.evaluator import hidden_states
from eunoe.folder import derived_seed, note_time, recorded, says_whose
from eunoe.foreign import first_line
from eunoe.material import Material
from eunoe.methods import Chosen
from eunoe.methods.base import Method, Stage, bytes_of
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import lm_loss
from eunoe.models.load import pretrained
from eunoe.progress import say, say_once
from eunoe.recipe import ModelSettings, TrainingSettings
from eunoe.train import Job, train

PROBE_BLOCKS = 2


@dataclass(frozen=True)
class Sequence:
    """One way through the domains: a method, an order, a seed. ``method`` None: the pretrained model itself."""

    label: str
    method: Chosen | None
    training: TrainingSettings
    order_name: str
    order: tuple[str, ...]
    seed: int

    @property
    def folder(self) -> str:
        return f"sequences/{self.label}.{self.order_name}.seed{self.seed}"

    @property
    def stages(self) -> list[tuple[str, ...]]:
        """The domains of each stage; none of the pretrained model."""
        return [] if self.method is None else self.method.stages(self.order)

    @property
    def names(self) -> list[str]:
        """The stages' names: the domain, ``domain#2`` where it returns, ``all`` or ``a+b`` for several at once."""
        made = ["all" if len(s) > 1 and set(s) == set(self.order) else "+".join(s) for s in self.stages]
        return [
            name if made[:i].count(name) == 0 else f"{name}#{made[:i].count(name) + 1}" for i, name in enumerate(made)
        ]

    def learnt(self, i: int) -> tuple[str, ...]:
        """The domains of stages 0 to i, in the order they were learnt."""
        return tuple(domain for stage in self.stages[: i + 1] for domain in stage)

    def reads_as(self, domain: str, i: int) -> str | None:
        """Under which name a method reads text of ``domain`` after stage ``i``: that of the latest stage that learnt it, as a domain
        that returns was learnt better then; None where none did."""
        stages = [k for k, domains in enumerate(self.stages[: i + 1]) if domain in domains]
        return self.name_in(domain, stages[-1]) if stages else None

    def name_in(self, domain: str, i: int) -> str:
        """What a method calls ``domain`` as stage ``i`` learnt it: the stage's name, or the domain's where it learnt several."""
        return self.names[i] if len(self.stages[i]) == 1 else domain

    def steps(self, i: int, material: Material) -> int:
        """Optimizer steps of stage ``i``; a recipe's ``steps`` are a domain's, so a stage of several has them for each."""
        blocks, settings = sum(len(material.train[domain]) for domain in self.stages[i]), self.training
        return (settings.steps or 0) * len(self.stages[i]) or max(1, round(blocks * settings.epochs / settings.batch))

    def stage_key(self, i: int) -> str:
        """The folder of stage ``i``, below the run."""
        return f"{self.folder}/domains/{i}-{self.names[i]}"

    def needs(self, i: int) -> tuple[str, ...]:
        """The stages that must be learnt before stage ``i`` can be."""
        alone = self.method is not None and self.method.starts_from == "base"
        return () if alone or i == 0 else (self.stage_key(i - 1),)

    def holds(self, i: int) -> tuple[str, ...]:
        """The stages whose finals hold the state after stage ``i``."""
        alone = self.method is not None and self.method.starts_from == "base"
        return tuple(self.stage_key(k) for k in range(0 if alone else i, i + 1))


class Walk:
    """A sequence's model and method; ``after(i)`` brings it to the state after stage ``i`` (-1: before any).

    ``run``: the run's fingerprint, which checkpoints must carry; None checks nothing. Raises ``EunoeError`` for options that do
    not fit the model, for states that are damaged or of another run.
    """

    def __init__(self, sequence: Sequence, model: ModelSettings, out: Path, run: str | None = None) -> None:
        self.sequence, self.settings, self.out, self.run = sequence, model, out, run
        self._build()

    def _build(self) -> None:
        sequence, self.lm = self.sequence, pretrained(self.settings)
        # what is drawn here depends on the sequence's seed alone, not on what ran before in this process
        torch.manual_seed(sequence.seed)
        try:
            self.method = (Method(self.lm.model, None, sequence.order) if sequence.method is None
                           else sequence.method.build(self.lm.model, _unique(sequence)))  # fmt: skip
        except (RuntimeError, MemoryError) as error:  # what torch raises where there is not enough memory
            raise EunoeError(f"the method {sequence.label} cannot be made around {self.settings.name!r}: {first_line(error)} Give it "
                             "smaller sizes, or a machine with more memory.") from error  # fmt: skip
        self.lm.model.to(ranks.device())  # after it was drawn on the CPU, so the same weights start anywhere
        self.stage, self.steps = -1, 0
        self.size = 0
        """Bytes of the tensors of the final it was restored from."""
        self.curve: str | None = None
        self.start = "pretrained"
        """Names the state: the digest of the final it was restored from, or of all that hold it together."""

    def after(self, i: int) -> int:
        """Restore the state after stage ``i``, unless it is there; returns the optimizer steps of that stage."""
        if self.stage != i:
            first = i
            if self.method.starts_from == "base":  # each stage's final holds its own part alone
                first = self.stage + 1 if 0 <= self.stage < i else 0
            if self.stage != -1 and (i == -1 or (first == 0 and self.method.starts_from == "base")):
                self._build()
            for k in range(max(0, first), i + 1):
                self._read_back(k)
        return self.steps

    def _read_back(self, i: int) -> None:
        try:
            self.take(self.load(i), i)
        except checkpoint.Damaged as error:
            raise EunoeError(f"{error} To learn that stage again: give the same command with --relearn.") from None

    def load(self, i: int) -> checkpoint.Checkpoint:
        """The final checkpoint of stage ``i``, verified."""
        key = self.sequence.stage_key(i)
        expected = {"run": self.run, "cell": key} if self.run is not None else None
        state = checkpoint.load(self.out / key / "final", expected)
        was = recorded(self.out, key).get(f"{key}/final/manifest.json", state.digest)
        if was != state.digest:
            raise checkpoint.Damaged(
                f"{state.folder} is not what was learnt: its manifest has SHA-256 {state.digest}, recorded is {was}."
            )
        if state.identity is None and self.run is not None:
            if says_whose(self.out):
                raise checkpoint.Damaged(f"{state.folder} does not say what it is of, as every final of this run does.")
            say_once(f"finals of {self.out} that an earlier version of eunoe wrote do not say what they are of: whether they belong to "
                     "this run cannot be checked.")  # fmt: skip
        return state

    def take(self, state: checkpoint.Checkpoint, i: int) -> None:
        """Put a loaded final of stage ``i`` into the model and the method, which are (where each starts from the base) after ``i - 1``."""
        self.stage = -2  # no stage's whole state while it is half taken
        try:
            with checkpoint.forged(state.folder):
                self.steps, self.curve = int(state.groups["steps"]), state.groups.get("curve")
                self.size = bytes_of([state.groups["weights"], state.groups["method"]])
                self.method.restore(
                    self.sequence.names[i], state.groups["weights"], state.groups["method"], str(state.folder)
                )
        except Interrupted:
            raise
        except EunoeError as error:  # a final of this run that does not fit its own method
            raise checkpoint.Damaged(str(error)) from error
        parts = [self.start, state.digest] if self.method.starts_from == "base" and i > 0 else [state.digest]
        self.start, self.stage = (
            parts[0] if len(parts) == 1 else hashlib.sha256(" ".join(parts).encode()).hexdigest(),
            i,
        )

    # -- learning --------------------------------------------------------------------------------------------------
    def learn(self, i: int, material: Material) -> None:
        """Learn stage ``i`` and save its final checkpoint; resumes inside. Does nothing where the final is there."""
        sequence, folder = self.sequence, self.out / self.sequence.stage_key(i)
        if ranks.decide(lambda: self._learnt(i)):
            return
        self.after(-1 if not sequence.needs(i) else i - 1)
        domains, name, job = sequence.stages[i], sequence.names[i], self.job(i, material)
        done = train(job)
        for note in done.notes:
            say(f"skipped a damaged checkpoint: {note}")
        probes = {domain: self._probe(domain, i, material) for domain in dict.fromkeys(domains)}
        self.stage = -2
        if not ranks.first():
            return
        checkpoint.save(folder / "final", {
            "weights": self.method.weights(), "method": self.method.state_dict(), "steps": done.steps, "curve": done.curve_csv(),
            "probe": probes[domains[0]] if len(probes) == 1 else probes,
        }, job.identity)  # fmt: skip
        note_time(self.out, f"{sequence.folder.removeprefix('sequences/')}/{i}-{name}", done.seconds, done.tokens)

    def _probe(self, domain: str, i: int, material: Material) -> dict[str, Any]:
        ids, name = material.valid[domain][0]["input_ids"][:PROBE_BLOCKS], self.sequence.name_in(domain, i)
        return {"input_ids": ids, "states": self.read(name, ids), "reads": self.reads_hash(name)}

    def probes(self, state: checkpoint.Checkpoint, i: int) -> dict[str, Mapping[str, Any]]:
        """Of each domain of stage ``i``, what its final recorded: some blocks, the states they gave, a hash of what they read."""
        probe, domains = state.groups["probe"], dict.fromkeys(self.sequence.stages[i])
        return {domain: probe if "input_ids" in probe else probe[domain] for domain in domains}

    def _learnt(self, i: int) -> bool:
        """Is the final of stage ``i`` there? One that was learnt from another state than the sequence now has is deleted."""
        final = self.out / self.sequence.stage_key(i) / "final"
        if not checkpoint.whole(final):
            return False
        needs = self.sequence.needs(i)
        said = (checkpoint.identity_of(final) or {}).get("start")
        now = checkpoint.manifest_digest(self.out / needs[0] / "final") if needs else "pretrained"
        # a final of before 0.2 does not say what it started from, and is believed
        if said in (None, now):
            return True
        say(f"{final} was learnt from a state that is no longer there: that stage is learnt again.")
        shutil.rmtree(final)
        (final.parent / "cell.json").unlink(missing_ok=True)
        return False

    def own(self, i: int) -> None:
        """Restore what stage ``i`` left, as it is read back right after it was learnt: the state after it, or (where each stage
        starts from the base) its own part alone, as the other stages may not be learnt yet."""
        if self.method.starts_from != "base":
            self.after(i)
            return
        self._build()
        self._read_back(i)
        self.stage = -2

    def damage(self, i: int) -> str | None:
        """What is wrong with the final of stage ``i``; None where it can be restored. Raises what learning again would not repair."""
        try:
            if self.method.starts_from == "base":
                self._build()
            self.take(self.load(i), i)
        except checkpoint.Damaged as error:
            self._build()  # it may hold half of that state
            return str(error)
        self.stage = -2
        return None

    def job(self, i: int, material: Material) -> Job:
        """The training of stage ``i``, from the state that the model is in."""
        sequence, folder, settings = self.sequence, self.out / self.sequence.stage_key(i), self.sequence.training
        blocks = joined([material.train[domain] for domain in sequence.stages[i]])
        steps, seed = sequence.steps(i, material), derived_seed(sequence.seed, "learn", str(i), sequence.names[i])
        batches = LMBatches(blocks, self.lm.objective, self.lm.mask_id, len(self.lm.tokenizer), settings.batch, steps, seed,
                            settings.micro_batch, settings.mask_rate, ranks.rank(), ranks.world())  # fmt: skip
        return Job(
            name=f"{sequence.label} · seed {sequence.seed} · {sequence.names[i]}", model=self.lm.model, batches=batches, loss=lm_loss,
            settings=settings, seed=seed, method=self.method, folder=folder / "steps",
            identity={"run": self.run or "", "cell": sequence.stage_key(i), "start": self.start},
            stage=self._stage(i, batches, material, steps * settings.batch / len(blocks), seed, folder),
            optimizer=lambda m: make_optimizer(settings.optimizer, m, settings.lr, steps),
        )  # fmt: skip

    def _stage(self, i: int, batches: LMBatches, material: Material, epochs: float, seed: int, folder: Path) -> Stage:
        sequence = self.sequence
        reads = sequence.method.reads if sequence.method else frozenset()
        before = dict.fromkeys(sequence.learnt(i - 1)) if "earlier" in reads else {}
        valid = {d: material.valid[d] for d in (*sequence.stages[i], *before)}
        return Stage(
            name=sequence.names[i], domains=sequence.stages[i], index=i, epochs=epochs, seed=seed, batches=batches, valid=valid,
            earlier={d: material.train[d] for d in before}, general=material.general if "general" in reads else None,
            folder=folder / "steps" / "end",
        )  # fmt: skip

    def write_beside(self, i: int) -> list[str]:
        """What stands beside the final of stage ``i``, made from it; returns the files' names, from the run's folder."""
        sequence = self.sequence
        names = [f"{sequence.stage_key(i)}/final/manifest.json", f"{sequence.stage_key(i)}/curve.csv"]
        if self.curve is not None or not (self.out / names[-1]).is_file():  # before 0.2 the final did not hold it
            write_text(self.out / names[-1], str(self.curve or "step,loss,lr,grad_norm\n"))
        files, warnings = self.method.facts()
        files = {**files, "sizes.json": {"checkpoint": self.size, "beside": self.method.sizes()}}
        for name, value in files.items():
            names.append(f"{sequence.stage_key(i)}/{name}")
            write_text(self.out / names[-1], json.dumps(value) + "\n")
        for warning in warnings:
            say(f"{sequence.label} · seed {sequence.seed}: {warning}")
        return names

    def publish(self) -> list[str]:
        """What stands beside the sequence after its last stage: notes for the report, plug-ins for others; the files' names."""
        names = []
        if notes := self.method.notes():
            names.append(f"{self.sequence.folder}/notes.json")
            write_text(self.out / names[0], json.dumps(notes, ensure_ascii=False) + "\n")
        plugins = self.out / self.sequence.folder / "plugins"
        # whole or not at all: somebody may copy the folder while it is written
        partial = plugins.with_name("plugins.partial")
        shutil.rmtree(partial, ignore_errors=True)
        self.method.publish(partial)
        if not partial.is_dir():
            return names
        shutil.rmtree(plugins, ignore_errors=True)
        partial.rename(plugins)
        return names + [str(file.relative_to(self.out)) for file in sorted(plugins.rglob("*")) if file.is_file()]

    # -- what it promises --------------------------------------------------------------------------------------------
    def read(self, domain: str | None, input_ids: Tensor) -> Tensor:
        """Hidden states of ``input_ids`` (B, T) as ``domain`` reads them now, (B, T, width)."""
        self.method.activate(domain)
        return hidden_states(self.lm.model, anatomy(self.lm.model).base, input_ids)

    def reads_hash(self, domain: str) -> str | None:
        """SHA-256 over every bit of a weight that the domain's output reads; None where the method promises nothing."""
        if self.method.forgets:
            return None
        self.method.activate(domain)
        named, total = dict(self.lm.model.named_parameters()), hashlib.sha256()
        for name, entries in sorted(self.method.reads(domain).items()):
            weight = named[name].detach().cpu()
            read = weight.flatten() if entries is None else weight[entries.cpu()]
            total.update(name.encode())
            # bytes, not values: -0.0 equals 0.0, and nan equals nothing
            total.update(read.contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()


def _unique(sequence: Sequence) -> list[str]:
    """What a method is built with: a stage's name for each stage of one domain (so a domain that returns has two)."""
    return [
        name
        for name, stage in zip(sequence.names, sequence.stages, strict=True)
        for name in ([name] if len(stage) == 1 else dict.fromkeys(stage))
    ]


__all__ = ["Sequence", "Walk"]
