"""Zero forgetting is proved, not claimed: recompute what earlier domains read and compare the bits.

When a domain ended, its checkpoint kept a probe: some of its held-out blocks and the hidden states they gave, and the
SHA-256 of every weight entry its output reads. ``verify`` computes the probe from the domain's own checkpoint and from
the state after the LAST domain, under the domain's masks, and compares the bits, and the hash. Where the versions and the
machine are those of the run, the bits must also equal those recorded then. Checkpoints' own hashes are checked on the way, a
checkpoint that is gone is a broken promise, and the plug-ins written for others must be those of the last state. A
method that makes no promise (ncl) is measured too, and said to have changed; that fails nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from eunoe import checkpoint
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import hidden_states
from eunoe.folder import environment, finished
from eunoe.methods.base import Method
from eunoe.models.anatomy import anatomy
from eunoe.plan import Sequence
from eunoe.recipe import ModelSettings, as_path
from eunoe.run import build_sequence, domain_folder, load_plan, model_settings, reads_hash
from eunoe.train import restore


@dataclass(frozen=True)
class Finding:
    """What verify saw of one domain of one sequence."""

    sequence: str
    domain: str
    """Or ``plugins``: those that the run wrote for others."""
    promised: bool
    """Does the method promise that nothing of this domain changes?"""
    equal: bool
    """Are outputs and the weights they read the same to the bit?"""
    text: str

    @property
    def broken(self) -> bool:
        return self.promised and not self.equal


def verify(out: str | os.PathLike[str]) -> list[Finding]:
    """Check every finished sequence of a run folder; raises ``EunoeError`` if there is nothing to check.

    >>> [f.broken for f in verify(Path("runs/demo"))]  # doctest: +SKIP
    [False, False, False, False, False, False, False, False]
    """
    out = as_path(out, "the run folder")
    plan = load_plan(out)
    model = model_settings(plan, out)
    was, now = json.loads((out / "environment.json").read_text(encoding="utf-8")), environment("")
    same_machine = all(was.get(key) == value for key, value in now.items() if key != "command")
    findings: list[Finding] = []
    for sequence in plan.sequences:
        if sequence.method is not None:
            findings += _verify_sequence(sequence, model, out, same_machine)
    if not findings:
        raise EunoeError(
            f"{out} has no finished domain to verify. Let it run first: eunoe run {out / 'recipe.yaml'} --out {out}"
        )
    return findings


@dataclass(frozen=True)
class _Before:
    """A domain as it was before the last one was learnt: what its probe gave here, and the hash of the weights it read."""

    domain: str
    input_ids: Tensor
    states: Tensor
    reads: str | None
    recorded: Tensor | None = None
    """The states that the run recorded; None: it was learnt before the run."""


def _verify_sequence(sequence: Sequence, model: ModelSettings, out: Path, same_machine: bool) -> list[Finding]:
    places = {i: domain_folder(out, sequence, i) / "final" for i in range(len(sequence.order))}
    done = [i for i, folder in places.items() if checkpoint.whole(folder)]
    reached = len(places) if finished(out) else max(done, default=-1) + 1
    gone = [
        Finding(sequence.folder, sequence.order[i], True, False, f"its checkpoint {places[i]} is missing, or not whole")
        for i in range(reached)
        if i not in done
    ]
    if gone or not done:
        return gone
    lm, method = build_sequence(sequence, model)
    promised = not method.forgets
    held: dict[int, checkpoint.Checkpoint] = {}
    findings: list[Finding] = []
    for i in done:
        try:
            held[i] = checkpoint.load(domain_folder(out, sequence, i) / "final")
        except EunoeError as error:
            findings.append(Finding(sequence.folder, sequence.order[i], True, False, str(error)))
    if findings:
        return findings
    base = anatomy(lm.model).base

    def take(state: checkpoint.Checkpoint) -> None:
        restore(lm.model, state.groups["weights"], str(state.folder))
        method.load_state_dict(state.groups["method"])

    def read(domain: str, input_ids: Tensor) -> Tensor:
        """Hidden states of a probe as ``domain`` reads it, from the state that was taken last."""
        method.activate(domain)
        return hidden_states(lm.model, base, input_ids)

    # as each domain was when it ended; domains learnt before: as they are in what the method started from
    ids = held[done[-1]].groups["probe"]["input_ids"]
    before = [_Before(domain, ids, read(domain, ids), reads_hash(lm, method, domain)) for domain in method.earlier]
    for i, state in held.items():
        domain, probe = sequence.order[i], state.groups["probe"]
        take(state)
        before.append(
            _Before(domain, probe["input_ids"], read(domain, probe["input_ids"]), probe["reads"], probe["states"])
        )
    take(held[done[-1]])
    for was in before:
        now = read(was.domain, was.input_ids)
        same, same_reads = _same_bits(was.states, now), was.reads == reads_hash(lm, method, was.domain)
        far = f"outputs changed (by up to {float((now - was.states).abs().max()):.3g})"
        text = ("learnt before this run; " if was.recorded is None else "") + (
            "outputs equal to the bit" if same else far
        )
        if promised:
            text += f", weights it reads {'equal to the bit' if same_reads else 'CHANGED'}"
        if was.recorded is not None and not _same_bits(was.states, was.recorded):
            text += ", but this machine computes other bits from its own checkpoint than were recorded"
            same = same and not same_machine
        findings.append(Finding(sequence.folder, was.domain, promised, same and same_reads, text))
    return findings + (_verify_published(sequence, method, out) if len(done) == len(places) else [])


def _verify_published(sequence: Sequence, method: Method, out: Path) -> list[Finding]:
    """Whether the plug-ins that the run wrote for others are those of its last state, to the bit."""
    folder = out / "sequences" / sequence.folder / "plugins"
    if not folder.is_dir() and not finished(out):
        return []  # a run that goes on writes them
    with TemporaryDirectory() as made:
        method.publish(Path(made))
        files = sorted(Path(made).iterdir())
        same = all((folder / f.name).is_file() and _content(folder / f.name) == _content(f) for f in files)
    text = "the written plug-ins are those of the last state" if same else f"{folder} is NOT what the last state gives"
    return [Finding(sequence.folder, "plugins", True, same, text)] if files else []


def _content(file: Path) -> Any:
    """What a published file holds, but for where the pretrained model lay, which is another place on another machine."""
    if file.suffix != ".json":
        return file.read_bytes()
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if isinstance(held, dict):
        held.pop("base_model_name_or_path", None)
    return held


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))
