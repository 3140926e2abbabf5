"""Zero forgetting is proved, not claimed: recompute what earlier domains read and compare the bits.

When a stage ended, its checkpoint kept a probe: some of its held-out blocks and the hidden states they gave, and the SHA-256 of
every weight entry its output reads. ``verify`` computes both again, from the stage's own checkpoint and from the state after the
LAST stage, as the domain reads it, and compares the bits. Where the versions and the machine are those of the run, the bits must
also equal those recorded then. On the way it checks that every checkpoint is whole, is what was learnt here (not another run's,
nor one that was written since), and was what the next stage started from; that rows are the run's own; and that the plug-ins written
for others are those of the last state. A method that makes no promise (ncl) is measured too, and said to have changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from eunoe import checkpoint, stop
from eunoe.cells import Board
from eunoe.errors import EunoeError, Interrupted
from eunoe.folder import environment, fingerprint, says_whose, was_finished
from eunoe.foreign import first_line, reading
from eunoe.plan import Measure, RunPlan, load_run, model_settings
from eunoe.recipe import as_path
from eunoe.sequence import Sequence, Walk


@dataclass(frozen=True)
class Finding:
    """What verify saw of one domain of one sequence."""

    sequence: str
    domain: str
    """Or ``plugins``: those that the run wrote for others; ``rows``: the scores of the sequence."""
    promised: bool
    """Does the method promise that nothing of this domain changes? True too of what no method may do: a state or a row changed."""
    equal: bool
    """Are outputs and the weights they read the same to the bit?"""
    text: str

    @property
    def broken(self) -> bool:
        return self.promised and not self.equal


def verify(out: Path | str) -> list[Finding]:
    """Check every finished sequence of a run folder; raises ``EunoeError`` if there is nothing to check.

    >>> [f.broken for f in verify("runs/demo")]  # doctest: +SKIP
    [False, False, False, False, False, False, False, False]
    """
    out = as_path(out, "out")
    plan, own = load_run(out), says_whose(out)
    with reading(
        out / "environment.json", "Restore it, or delete it: the bits are then not compared with those recorded."
    ):
        file = out / "environment.json"
        was = dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    now = environment("", plan.recipe)
    same_machine = all(was.get(key) == value for key, value in now.items() if key not in ("command", "threads"))
    # sums that are cut for another number of threads end in other bits
    if isinstance(plan.recipe.threads, int):
        torch.set_num_threads(plan.recipe.threads)
    findings: list[Finding] = []
    for way in plan.sequences:
        if way.method is not None:
            findings += _sequence(plan, way, out, same_machine) if way.stages else _reference(plan, way, out)
        findings += _rows(plan, way, out)
    if was_finished(out) and own:
        findings += _gathered(plan, out)
    if not any(f.domain != "rows" for f in findings):
        raise EunoeError(
            f"{out} has no finished domain to verify. Let it run first: eunoe run {out / 'recipe.yaml'} --out {out}"
        )
    return findings


@dataclass(frozen=True)
class _Before:
    """A domain as it was before the last one was learnt: what its probe gave here, and the hash of the weights it read."""

    name: str
    """The stage's, or the domain's own where the stage learnt several: the name that the method reads it under."""
    input_ids: Tensor
    states: Tensor
    reads: str | None
    recorded: tuple[Tensor, str | None] | None = None
    """The states and the hash that the run recorded; None: it was learnt before the run."""
    other: str = ""
    """What says that its state is not the one that the next stages were learnt from."""


def _sequence(plan: RunPlan, way: Sequence, out: Path, same_machine: bool) -> list[Finding]:
    name, stages = _name(way), range(len(way.stages))
    done = [i for i in stages if checkpoint.whole(out / way.stage_key(i) / "final")]
    # later stages may not be learnt yet; one before a stage that is there may not be missing
    reached = len(stages) if was_finished(out) else max(done, default=-1) + 1
    gone = [Finding(name, way.names[i], True, False, f"its checkpoint {out / way.stage_key(i) / 'final'} is missing, or not whole")
            for i in range(reached) if i not in done]  # fmt: skip
    if gone or not done:
        return gone
    walk = Walk(way, model_settings(plan.recipe, out), out, fingerprint(out))
    last = done[-1]
    before: list[_Before] = []
    findings: list[Finding] = []

    def attempt(domain: str, work: Callable[[], None]) -> None:
        """A damaged or tampered state or probe can raise anything in torch; whatever it is, the promise is not kept."""
        stop.check("verifying")
        try:
            work()
        except Interrupted:
            raise
        except Exception as error:
            text = str(error) if isinstance(error, EunoeError) else f"its probe cannot be computed: {first_line(error)}"
            findings.append(Finding(name, domain, True, False, text))

    for domain in walk.method.earlier:  # as they are in what the method started from
        attempt(domain, lambda domain=domain: before.append(_earlier(walk, domain, last)))  # type: ignore[misc]
    for i in done:  # as each domain was when it ended
        attempt(way.names[i], lambda i=i: before.extend(_own(walk, i)))  # type: ignore[misc]
    if any(f.domain == way.names[last] for f in findings):
        return findings  # there is no last state to compare with
    walk.after(last)
    for was in before:
        attempt(was.name, lambda was=was: findings.append(_compare(walk, name, was, same_machine)))  # type: ignore[misc]
    return findings + (_published(walk, way, out) if len(done) == len(stages) else [])


def _reference(plan: RunPlan, way: Sequence, out: Path) -> list[Finding]:
    """A method that learns no domain has nothing that could change; nothing where it is not scored yet."""
    board = Board(out, fingerprint(out))
    scored = [cell for cell in plan.cells(board) if isinstance(cell.work, Measure) and cell.work.way == way]
    if not all((out / cell.key / "cell.json").exists() for cell in scored):
        return []
    return [
        Finding(
            _name(way),
            "reference",
            False,
            True,
            "it learns no domain: the model is as it was, and nothing could be forgotten",
        )
    ]


def _earlier(walk: Walk, domain: str, last: int) -> _Before:
    ids = next(iter(walk.probes(walk.load(last), last).values()))["input_ids"]
    return _Before(domain, ids, walk.read(domain, ids), walk.reads_hash(domain))


def _own(walk: Walk, i: int) -> list[_Before]:
    """Each domain of stage ``i`` from its own checkpoint, which must be what the next stage started from."""
    state = walk.load(i)
    said, other = (state.identity or {}).get("start"), ""
    if walk.method.starts_from == "previous" and i > 0 and said is not None:
        before = checkpoint.manifest_digest(walk.out / walk.sequence.stage_key(i - 1) / "final")
        if said != before:
            other = f"it was learnt from another state ({said}) than its sequence has there now ({before})"
    if walk.method.starts_from == "base":
        walk.after(i - 1)
    walk.take(state, i)
    probes = walk.probes(state, i)
    recorded = []
    for domain, probe in probes.items():
        ids, states, reads = probe["input_ids"], probe["states"], probe["reads"]
        if not isinstance(states, Tensor):
            raise EunoeError(f"{state.folder}: the probe's states are not a tensor.")
        name = walk.sequence.name_in(domain, i)
        now, hashed = walk.read(name, ids), walk.reads_hash(name)
        recorded.append(_Before(name, ids, now, hashed, (states, reads), other))
    return recorded


def _compare(walk: Walk, name: str, was: _Before, same_machine: bool) -> Finding:
    """A domain as it was against the state that the walk is in."""
    promised, own = not walk.method.forgets, not was.other
    now, reads = walk.read(was.name, was.input_ids), walk.reads_hash(was.name)
    same, same_reads = _same_bits(was.states, now), was.reads == reads
    far = f"outputs changed (by up to {float((now - was.states).abs().max()):.3g})"
    text = ("learnt before this run; " if was.recorded is None else "") + ("outputs equal to the bit" if same else far)
    if promised:
        text += f", weights it reads {'equal to the bit' if same_reads else 'CHANGED'}"
    if was.recorded is not None:
        states, recorded_reads = was.recorded
        if recorded_reads != was.reads:
            text += "; its own checkpoint holds OTHER weights than it had when it was learnt"
            own = False
        if not _same_bits(was.states, states):
            text += "; this machine computes other bits from its own checkpoint than were recorded"
            # a merge of what the stages left, which nothing promises, is computed from rounded differences
            exact = promised or walk.method.starts_from == "previous"
            own = own and not (same_machine and exact)
    if was.other:
        text += f"; {was.other}"
    return Finding(name, was.name, promised or not own, own and same and same_reads, text)


def _rows(plan: RunPlan, way: Sequence, out: Path) -> list[Finding]:
    """Scores that are not as they were written, or are of another run; nothing where all are well."""
    board, findings = Board(out, fingerprint(out)), []
    for cell in plan.cells(board):
        stop.check("verifying")
        if not isinstance(cell.work, Measure) or cell.work.way != way or not (out / cell.key / "cell.json").exists():
            continue
        try:
            whole, text = (
                board.done(cell),
                f"{out / cell.key} is not as it was written, or what it was computed from is not",
            )
        except EunoeError as error:
            whole, text = False, str(error)
        if not whole:
            findings.append(Finding(_name(way), "rows", True, False, text))
    return findings


def _gathered(plan: RunPlan, out: Path) -> list[Finding]:
    """rows.jsonl, of which reports are made, against the cells' own rows; nothing where they are the same."""
    file, board = out / "rows.jsonl", Board(out, None)
    try:
        same = file.read_text(encoding="utf-8") == board.all_rows(plan.cells(board))
    except Exception:  # not there, or damaged
        same = False
    text = f"{file} is not what the run's cells hold. Run the same command again, which makes it again"
    return [] if same else [Finding("rows.jsonl", "rows", True, False, text)]


def _published(walk: Walk, way: Sequence, out: Path) -> list[Finding]:
    """Whether the plug-ins that the run wrote for others are those of its last state, to the bit."""
    folder = out / way.folder / "plugins"
    if not folder.is_dir() and not was_finished(out):
        return []  # the run writes them when it is resumed
    with TemporaryDirectory() as made:
        # written anew and compared: reading the published files back would prove nothing
        walk.method.publish(Path(made))
        files = sorted(file for file in Path(made).rglob("*") if file.is_file())
        there = [folder / file.relative_to(made) for file in files]
        same = all(w.is_file() and _content(w) == _content(f) for w, f in zip(there, files, strict=True))
    text = "the written plug-ins are those of the last state" if same else f"{folder} is NOT what the last state gives"
    return [Finding(_name(way), "plugins", True, same, text)] if files else []


def _name(way: Sequence) -> str:
    return way.folder.removeprefix("sequences/")


def _content(file: Path) -> Any:
    """What a published file holds, but for where the pretrained model lay, which is another place on another machine."""
    if file.suffix != ".json":
        return file.read_bytes()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if isinstance(content, dict):
        # where the model lay belongs to the machine, not to the state
        content.pop("base_model_name_or_path", None)
    return content


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))


__all__ = ["Finding", "verify"]
