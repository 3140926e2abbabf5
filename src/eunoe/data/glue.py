"""GLUE's nine tasks and its diagnostic set, from the official folders or the hub, as the papers read them.

GLUE: Wang et al. 2018, https://arxiv.org/abs/1804.07461, https://gluebenchmark.com. The files are tab-separated WITHOUT quoting: a
double quote is a character. The first may begin with a byte-order mark (MRPC), CoLA's labelled files have no header,
QQP's have a few rows that break off (they are left out and counted, as the usual scripts do), MRPC comes under two names, of which the
older has the development rows among the training rows. A test row is never left out: the server counts them.
Columns are found by the header's names, so their number may differ between copies. The layouts are those of the official
download script; the columns of cola, rte, mrpc, stsb and qnli are checked against real files, the others' are from memory.

Metrics. RecAdam's tables (https://arxiv.org/abs/2004.12651) have Matthews' correlation for CoLA, Pearson's for STS-B and accuracy for all
others; GLUE adds F1 (MRPC, QQP) and Spearman's (STS-B). A task's first metric is the papers'. MNLI has two development sets: ``dev`` is
the matched one, ``dev_mismatched`` the other (RecAdam's script let the second overwrite the first).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eunoe import stop
from eunoe.data.encoding import lines_of
from eunoe.data.records import cell, read_hub, shown_value, text_cell
from eunoe.data.shots import evenly
from eunoe.data.tasks import Example, Task
from eunoe.errors import EunoeError
from eunoe.foreign import reading
from eunoe.lookup import lookup, unknown
from eunoe.progress import say
from eunoe.recipe import expand

HUB = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task as GLUE hands it out and takes it back."""

    folder: str
    """Its folder in the official layout; found whatever its case and hyphens."""
    text: str
    """Column of the (first) text."""
    pair: str | None = None
    label: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    """Classes in GLUE's order, the positive one last where F1 is scored; () for regression."""
    metrics: tuple[str, ...] = ("accuracy",)
    """The papers' metric first, then GLUE's own."""
    splits: tuple[str, ...] = ("train", "dev", "test")
    header: bool = True
    """Do the labelled files have a header? Test files always do."""
    files: tuple[tuple[str, str], ...] = ()
    """Other names of a split's file: (split, name)."""
    ragged: bool = False
    """Are labelled rows with too few or too many cells left out (else refused)?"""
    symmetric: bool = False
    """Do the two texts mean the same in either order?"""
    ids: tuple[str, ...] = ()
    """Columns that name a row, where development rows may lie among the training rows."""
    submit: tuple[tuple[str, str, int], ...] = ()
    """What the server takes: (split, name of the file, rows)."""

    @property
    def kind(self) -> str:
        return "classification" if self.labels else "regression"


_ENTAIL, _NLI = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(folder="CoLA", text="sentence", metrics=("matthews",), header=False, submit=(("test", "CoLA.tsv", 1063),)),
    "sst2": GlueTask(folder="SST-2", text="sentence", submit=(("test", "SST-2.tsv", 1821),)),
    "mrpc": GlueTask(
        folder="MRPC", text="#1 String", pair="#2 String", label="Quality", metrics=("accuracy", "f1"),
        files=(("train", "msr_paraphrase_train.txt"), ("test", "msr_paraphrase_test.txt"), ("dev", "dev_ids.tsv")),
        ids=("#1 ID", "#2 ID"), symmetric=True,
        submit=(("test", "MRPC.tsv", 1725),),
    ),
    "stsb": GlueTask(
        folder="STS-B", text="sentence1", pair="sentence2", label="score", labels=(), metrics=("pearson", "spearman"), symmetric=True,
        submit=(("test", "STS-B.tsv", 1379),),
    ),
    "qqp": GlueTask(
        folder="QQP", text="question1", pair="question2", label="is_duplicate", metrics=("accuracy", "f1"), ragged=True, symmetric=True,
        submit=(("test", "QQP.tsv", 390965),),
    ),
    "mnli": GlueTask(
        folder="MNLI", text="sentence1", pair="sentence2", label="gold_label", labels=_NLI,
        splits=("train", "dev", "dev_mismatched", "test", "test_mismatched"),
        files=(("dev", "dev_matched.tsv"), ("test", "test_matched.tsv")),
        submit=(("test", "MNLI-m.tsv", 9796), ("test_mismatched", "MNLI-mm.tsv", 9847)),
    ),
    "qnli": GlueTask(
        folder="QNLI", text="question", pair="sentence", labels=_ENTAIL, submit=(("test", "QNLI.tsv", 5463),)
    ),
    "rte": GlueTask(
        folder="RTE", text="sentence1", pair="sentence2", labels=_ENTAIL, submit=(("test", "RTE.tsv", 3000),)
    ),
    "wnli": GlueTask(folder="WNLI", text="sentence1", pair="sentence2", submit=(("test", "WNLI.tsv", 146),)),
    "ax": GlueTask(
        folder="diagnostic", text="sentence1", pair="sentence2", labels=_NLI, splits=("test",),
        files=(("test", "diagnostic.tsv"),), submit=(("test", "AX.tsv", 1104),),
    ),
}  # fmt: skip
"""Name -> task; ``ax`` is the diagnostic set, which is answered with MNLI's model and has no rows to learn from."""


def load_glue(name: str, task: str, root: str, train_rows: int | None = None, test_rows: int | None = None) -> Task:
    """A GLUE task to fine-tune and score: its training rows, and its development rows as the scored ones.

    ``root``: the folder that holds ``CoLA``, ``RTE``, ..., or ``hub``. ``train_rows``, ``test_rows``: at most so many, spread
    evenly. Raises ``EunoeError`` with file, line and what was expected.
    """
    spec = lookup(GLUE, task, "GLUE task")
    if "train" not in spec.splits:
        raise EunoeError(f"GLUE's {task} has test rows alone: fine-tune on mnli and answer {task} with that model.")
    train, dev = (_spread(read_glue(task, root, s), n) for s, n in (("train", train_rows), ("dev", test_rows)))
    return Task(name, spec.kind, spec.labels, train, dev, None, spec.metrics, symmetric=spec.symmetric)


def read_glue(task: str, root: str, split: str) -> list[Example]:
    """The rows of a split, in the file's order; the label of a test row is "" (nan for a number).

    ``split``: train, dev or test; of mnli also dev_mismatched and test_mismatched.
    """
    spec = lookup(GLUE, task, "GLUE task")
    if split not in spec.splits:
        raise unknown(split, spec.splits, f"split of GLUE's {task}")
    rows = list(_from_hub(task, spec, split) if root == "hub" else _from_file(task, spec, Path(expand(root)), split))
    if not rows:
        raise EunoeError(f"GLUE's {task} has no {split} rows in {root}. Fetch it again.")
    return rows


def has_split(task: str, root: str, split: str) -> bool:
    """Is there a file of this split below ``root``? (The hub has all of them.)"""
    spec = lookup(GLUE, task, "GLUE task")
    if split not in spec.splits:
        return False
    try:
        return root == "hub" or _file(task, spec, Path(expand(root)), split).is_file()
    except EunoeError:
        return False


def _spread(rows: list[Example], most: int | None) -> tuple[Example, ...]:
    return tuple(rows[i] for i in evenly(len(rows), most or len(rows)))


# -- the official folders -----------------------------------------------------------------------------------------------
def _file(task: str, spec: GlueTask, root: Path, split: str) -> Path:
    with reading(root):  # whatever the file system says of folders that may not be listed
        return _split_file(task, spec, root, split)


def _split_file(task: str, spec: GlueTask, root: Path, split: str) -> Path:
    wanted = {_bare(spec.folder), task}
    if not root.is_dir():
        raise EunoeError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}. Give the folder that holds {spec.folder}, "
                         "as the official download makes it.")  # fmt: skip
    folders = [p for p in sorted(root.iterdir()) if p.is_dir()]
    folder = next((p for p in folders if _bare(p.name) in wanted), None)
    if folder is None:
        of_one = next((name for name, o in GLUE.items() if _bare(root.resolve().name) in (_bare(o.folder), name)), None)
        if of_one is not None:
            raise EunoeError(f"{root} holds no folder {spec.folder!r}: it is the folder of {of_one} itself. Give the folder above "
                             f"{root.resolve().name}: {root.resolve().parent}.")  # fmt: skip
        present = ", ".join(p.name for p in folders) or "no folders"
        raise EunoeError(f"{root} holds no folder {spec.folder!r}, where GLUE's {task} lies; it holds {present}. Give the folder above "
                         f"{spec.folder}, as the official download makes it.")  # fmt: skip
    names = [f"{split}.tsv", *(name for s, name in spec.files if s == split)]
    file = _first_of(folder, *names)
    if file is None:
        present = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise EunoeError(
            f"{folder} lacks the {split} rows of GLUE's {task}: expected {' or '.join(names)}; it holds {present}."
        )
    return file


def _first_of(folder: Path, *names: str) -> Path | None:
    """The first of these files that is there, plain or packed."""
    tried = (folder / f"{name}{gz}" for name in names for gz in ("", ".gz"))
    return next((file for file in tried if file.is_file()), None)


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _from_file(task: str, spec: GlueTask, root: Path, split: str) -> Iterator[Example]:
    file = _file(task, spec, root, split)
    if not spec.ids or split == "test":
        yield from (example for _, example in _read(spec, file, not split.startswith("test")))
        return
    among = _dev_ids(spec, file, split)
    if among and file.name.startswith("dev_ids"):
        source = _first_of(file.parent, "msr_paraphrase_train.txt", "train.tsv")
        if source is None:
            raise EunoeError(
                f"{file} names rows of msr_paraphrase_train.txt, which is not beside it. Fetch MRPC again."
            )
        file = source
    for key, example in _read(spec, file, True, with_ids=bool(among)):
        if not among or (key in among) == (split == "dev"):
            yield example


def _dev_ids(spec: GlueTask, file: Path, split: str) -> set[tuple[str, ...]]:
    """The ids of the development rows where these lie among the training rows of the old name; else none."""
    if split == "dev" and not file.name.startswith("dev_ids"):
        return set()
    own, ids = _first_of(file.parent, "dev.tsv"), _first_of(file.parent, "dev_ids.tsv")
    old = file.name.startswith("msr_paraphrase")
    if split == "train" and not old and (own is not None or ids is None):
        return set()
    if ids is None and own is None:
        raise EunoeError(f"{file} holds the development rows too, and neither dev_ids.tsv nor dev.tsv is beside it to tell them from the "
                         "training rows. Fetch MRPC again, or put GLUE's dev_ids.tsv there.")  # fmt: skip
    keys = {key for key, _ in _read(spec, own, True, with_ids=True)} if own is not None else set()
    for number, line in _lines(ids) if ids is not None else ():
        cells = tuple(cell.strip() for cell in line.split("\t"))
        if not line.strip():
            continue
        if len(cells) != len(spec.ids):
            raise EunoeError(
                f"{ids}, line {number}: {shown_value(line)}, expected {' and '.join(spec.ids)} separated by a tab. Fetch it again."
            )
        keys.add(cells)
    if not keys:
        raise EunoeError(
            f"{ids or own} is empty, so it does not say which rows are the development rows. Fetch it again."
        )
    return keys


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    for number, line in lines_of(file, advice="GLUE's files are UTF-8: fetch it again."):
        if number % 1000 == 0:
            stop.check(f"reading {file}")
        yield number, line


def _read(
    spec: GlueTask, file: Path, labelled: bool, with_ids: bool = False
) -> Iterator[tuple[tuple[str, ...], Example]]:
    """Each row of a file with its ids (none unless asked for)."""
    lines = _lines(file)
    ids = spec.ids if with_ids else ()
    if labelled and not spec.header:
        columns, positions = 4, {spec.text: 3, spec.label: 1}  # CoLA: source, label, the author's mark, sentence
    else:
        positions, columns = _columns(spec, file, next(lines, (1, ""))[1], labelled, ids)
    left_out = place = 0
    for number, line in lines:
        if not line.strip(" "):
            continue
        cells, where = line.split("\t"), f"{file}, line {number}"
        if labelled and not spec.header and number == 1 and {"sentence", "label"} & {c.strip().lower() for c in cells}:
            raise EunoeError(f"{where}: a header, {shown_value(line)}; {spec.folder}'s labelled files have none, but rows of source, "
                             "label, mark and sentence. Take the line out, or fetch the file again.")  # fmt: skip
        if len(cells) != columns:
            if spec.ragged and labelled:
                left_out += 1
                continue
            more = " (a stray tab shifts the text)" if len(cells) > columns else ""
            raise EunoeError(f"{where}: {len(cells)} columns, expected {columns} separated by tabs{more}. Correct the line or fetch the "
                             "file again.")  # fmt: skip
        if not labelled and "index" in positions and cells[positions["index"]].strip() != str(place):
            raise EunoeError(
                f"{where}: index {shown_value(cells[positions['index']])}, expected {place}: GLUE's server wants the rows in order."
            )
        place += 1
        if labelled and cells[positions[spec.label]] == "-":  # annotators did not agree, as SNLI writes it
            left_out += 1
            continue
        by_column = {key: cells[at] for key, at in positions.items()}
        yield tuple(by_column[key].strip() for key in ids), _example(spec, by_column, labelled, where)
    if left_out:
        say(f"{file}: {left_out} rows break off, have a tab too many or no label, and are left out")


def _columns(
    spec: GlueTask, file: Path, header: str, labelled: bool, ids: tuple[str, ...]
) -> tuple[dict[str, int], int]:
    """Where each wanted column is, from the header, and how many there are."""
    names = header.split("\t")
    wanted = [spec.text, *([spec.pair] if spec.pair else []), *([spec.label] if labelled else []), *ids]
    for name in wanted:
        if name not in names:
            raise EunoeError(
                f"{file}, line 1: {unknown(name, names, 'column')} The header of GLUE's {spec.folder} has {', '.join(wanted)}."
            )
    positions = {name: names.index(name) for name in wanted}
    index = next((name for name in ("index", "id") if name in names), None)
    if index is not None and not labelled:
        positions["index"] = names.index(index)
    return positions, len(names)


def _example(spec: GlueTask, cells: dict[str, str], labelled: bool, where: str) -> Example:
    label: str | float = "" if spec.labels else math.nan
    if labelled and spec.labels:
        label = cells[spec.label].strip()
        if label not in spec.labels:
            raise EunoeError(
                f"{where}: the label is {shown_value(label)}; GLUE's {spec.folder} has {', '.join(spec.labels)}."
            )
    elif labelled:
        try:
            label = float(cells[spec.label])
        except ValueError:
            label = math.nan
        if not 0 <= label <= 5:  # nan neither
            raise EunoeError(f"{where}: the score is {shown_value(cells[spec.label])}, expected a number from 0 to 5.")
    return Example(cells[spec.text], cells[spec.pair] if spec.pair else None, label)


# -- the hub ------------------------------------------------------------------------------------------------------------
def _from_hub(task: str, spec: GlueTask, split: str) -> Iterator[Example]:
    part = split.replace("dev", "validation")
    if task == "mnli" and split in ("dev", "test"):
        part += "_matched"
    names = {"#1 String": "sentence1", "#2 String": "sentence2"}
    if task == "mnli":
        names = {"sentence1": "premise", "sentence2": "hypothesis"}
    if task == "ax":
        names = {"sentence1": "premise", "sentence2": "hypothesis"}
    labelled = not split.startswith("test")
    for i, record in enumerate(read_hub(HUB, task, part)):
        where = f"{HUB} ({task}, {part}), row {i + 1}"
        cells = {spec.text: text_cell(record, names.get(spec.text, spec.text), where)}
        if spec.pair:
            cells[spec.pair] = text_cell(record, names.get(spec.pair, spec.pair), where)
        given = cell(record, "label", where)
        if (
            isinstance(given, bool)
            or not isinstance(given, int | float)
            or (spec.labels and not isinstance(given, int))
        ):
            raise EunoeError(
                f"{where}: the label is {shown_value(given)}, not a number. Is {HUB} the dataset that is meant?"
            )
        if labelled and spec.labels and not 0 <= given < len(spec.labels):
            continue  # a row without agreement, as SNLI's
        cells[spec.label] = spec.labels[int(given)] if labelled and spec.labels else str(given)
        yield _example(spec, cells, labelled, where)


__all__ = ["GLUE", "HUB", "GlueTask", "has_split", "load_glue", "read_glue"]
