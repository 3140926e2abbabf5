"""Labelled end tasks: classes, numbers or choices, of texts and pairs, from files and the hub, or made from the domain itself.

The way of CPT's end tasks (EMNLP 2022, https://arxiv.org/abs/2210.05549): resplit where the test set is small, then draw
few shots from the training rows; test sets stay full unless ``test_rows`` says otherwise. The order is: read, resplit
or split off a test set, draw, spread ``test_rows``.

The made task, ``headlines``, is ours: it lets a domain without labels have an end task. A reserved document's first line
is its headline, the rest its article; each document gives one true pair and one false, whose headline is that of the
next document on the same side, so no training article lends a test pair anything.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from eunoe.data.corpus import part_of, place, texts
from eunoe.data.layouts import LAYOUTS, read_layout
from eunoe.data.records import Record, cell, read_rows, shown_value, text_cell
from eunoe.data.shots import describe, draw, evenly, random_split, resplit
from eunoe.data.tagging import words_and_tags
from eunoe.errors import EunoeError
from eunoe.progress import say_once
from eunoe.recipe import CorpusSettings, TaskSettings, expand

SPLIT_SEED = 2021
"""Seed of ``test_share``: CPT's for AG News."""


@dataclass(frozen=True)
class Example:
    """One labelled row: ``text`` and ``pair`` in the order the model reads them; a class's name, a number, or which choice is right."""

    text: str
    pair: str | None
    """A second text; of a multiple-choice row the question about ``text``, where it has one."""
    label: str | float | tuple[str, ...]
    """The class, the number, the index (from 0) of the right choice, or the tags of a tagging row."""
    choices: tuple[str, ...] = ()
    """What a multiple-choice row offers; () of other kinds."""
    tokens: tuple[str, ...] = ()
    """The words of a tagging row, as somebody split them (``text`` has a space between them); () of other kinds."""


@dataclass(frozen=True)
class Task:
    """An end task as it is fine-tuned and scored."""

    name: str
    kind: str
    """``classification``, ``regression``, ``choice`` (multiple choice) or ``tagging``."""
    labels: tuple[str, ...]
    """The classes, or tags, of all training rows (before the draw), sorted; () of the other kinds."""
    train: tuple[Example, ...]
    """What is fine-tuned on: the few shots, or all."""
    test: tuple[Example, ...]
    """What is scored."""
    shots_seed: int | None
    """Seed that drew the shots; None where nothing was drawn at random."""
    metrics: tuple[str, ...] = ()
    """Metrics that come first, in this order, ``matthews`` and ``f1`` among them; the first is what systems are compared by."""
    unlabelled: tuple[str, ...] = ()
    """More text of the task, without labels, beside that of its rows."""
    short: dict[str, int] = field(default_factory=dict)
    """Class -> rows it has, where that is fewer than the few-shot draw takes; {} where every class had enough."""
    symmetric: bool = False
    """Do the texts of a pair mean the same in either order (similarity, paraphrase)?"""

    @property
    def choices(self) -> int:
        """How many choices each row has; 0 of other kinds."""
        return len(self.train[0].choices) if self.train else 0


def load_task(name: str, settings: TaskSettings, corpus: CorpusSettings) -> Task:
    """Read the end task ``name`` of the domain whose text is ``corpus`` (read only by a made task).

    Raises ``EunoeError`` for settings that would go unread, missing columns, labels that are no number (regression) or
    that no training row has, and draws that the rows do not allow; each names the file and row.
    """
    where = f"task of {name!r}"
    check_task(settings, where)
    if isinstance(settings.shots_seed, list):
        raise EunoeError(
            f"{where}: several draws (shots_seed: {settings.shots_seed}) are for end tasks of domains; give one seed here."
        )
    if settings.made is not None:
        return _headlines(name, settings, corpus, where)
    assert settings.train is not None
    rows = _read(settings.train, "train", settings)
    _refuse_ragged(rows)
    train = [example for _, example in rows]
    labels, classes = _classes(settings, train, where), _kind(settings) == "classification"
    if settings.test is None:
        assert settings.test_share is not None
        _refuse_alike(rows if classes else [])
        kept, scored = random_split(len(train), settings.test_share, SPLIT_SEED)
        every = train
    else:
        more = _read(settings.dev, "validation", settings) if settings.dev is not None else []
        last = _read(settings.test, "test", settings)
        _refuse_alike([*rows, *more, *last] if classes else [])
        _refuse_ragged([*rows[:1], *more, *last])
        dev, test = (_known(part, labels if classes else ()) for part in (more, last))
        every = [*train, *dev, *test]
        kept, scored = list(range(len(train))), list(range(len(train) + len(dev), len(every)))
        if settings.resplit is not None:
            kept, scored = resplit(_labels(train), _labels(dev), _labels(test), settings.resplit)
    chosen, seed, short = _draw([every[i] for i in kept], settings, labels, where)
    if classes and len({example.label for example in chosen}) < 2:
        raise EunoeError(
            f"{where}: the {len(chosen)} rows that are left to train on have one class, {shown_value(str(chosen[0].label))}: "
            f"the others of {settings.train} went to the test rows. Give more rows of each class, or test rows of their own."
        )
    if settings.test is not None and settings.resplit is None and expand(settings.test) == expand(settings.train):
        say_once(
            f"warning: {where}: the test rows are the training rows, so its scores say how well they are remembered"
        )
    scored = [scored[i] for i in evenly(len(scored), settings.test_rows or len(scored))]
    return Task(name, _kind(settings), labels, tuple(chosen), tuple(every[i] for i in scored), seed, short=short,
                unlabelled=_unlabelled(settings))  # fmt: skip


def draws(settings: TaskSettings) -> list[TaskSettings]:
    """The settings of each few-shot draw: one for each of ``shots_seed``, which is then a number."""
    seeds = settings.shots_seed
    return [replace(settings, shots_seed=seed) for seed in seeds] if isinstance(seeds, list) else [settings]


def draw_seed(settings: TaskSettings) -> int | None:
    """The seed that a draw's rows are kept under: None where nothing is drawn."""
    assert isinstance(settings.shots_seed, int)
    return None if settings.made is not None or settings.shots == "all" else settings.shots_seed


def check_task(settings: TaskSettings, where: str = "task") -> None:
    """Refuse settings that nothing would read, or that lack what they need; raises ``EunoeError`` naming the key."""
    given = {f.name for f in fields(settings) if getattr(settings, f.name) != f.default}
    if settings.made is not None:
        _refuse(given - {"made", "shots", "test_rows"}, "for a task made from the domain's text", where)
        if not isinstance(settings.shots, int):
            raise EunoeError(f"{where}: a made task needs shots, the number of documents to train on (each gives one row a class); "
                             f"received {settings.shots!r}. Try shots: 16.")  # fmt: skip
    elif settings.train is None:
        raise EunoeError(
            f"{where}: it has no rows. Give train (a file with labelled rows) and test, or made: headlines."
        )
    elif settings.test is None and settings.test_share is None:
        raise EunoeError(f"{where}: nothing to score on. Give test, or test_share (0.1 splits off a tenth of train).")
    kind = _kind(settings)
    if settings.layout is not None:
        _refuse(
            given & {"kind", "text", "pair", "pair_first", "label", "choices"},
            "without a layout, which says all of it",
            where,
        )
    elif (kind == "choice") != (settings.choices is not None):
        raise EunoeError(f"{where}: kind: choice and choices (the column that holds the list of them, or several columns) go together; "
                         f"received kind: {kind} and {'no choices' if settings.choices is None else 'choices'}.")  # fmt: skip
    sources = [s for s in (settings.train, settings.test, settings.dev) if s]
    hub = any(s.startswith("hub:") for s in sources)
    unread = {
        "test_share": settings.test is not None and "where no test is given",
        "pair": kind == "tagging" and "for texts, and tagging has words",
        "pair_first": (settings.pair is None or kind == "choice") and "with pair, of kinds without choices",
        "dev": settings.resplit is None and "with resplit",
        "resplit": (settings.test is None and "with test") or (kind != "classification" and "for classes"),
        "shots": kind != "classification" and f"for classes, and {kind} has none",
        "layout": hub and "for files: rows of the hub have columns",
        "shots_seed": settings.shots == "all" and "where shots are drawn",
        "shots_strict": settings.shots == "all" and "where shots are drawn",
        "encoding": all(s.startswith("hub:") for s in sources) and "for files",
        "config": not hub and "for hub: sources",
        "revision": not hub and "for hub: sources",
    }  # fmt: skip
    for key, only in unread.items():
        if only:
            _refuse(given & {key}, only, where)
    if isinstance(settings.shots_seed, list) and len(set(settings.shots_seed)) != max(1, len(settings.shots_seed)):
        raise EunoeError(f"{where}: shots_seed: give at least one seed, each once; received {settings.shots_seed}.")
    for key in ("shots", "test_rows"):
        value = getattr(settings, key)
        if isinstance(value, int) and value < 1:
            raise EunoeError(f"{where}: {key} must be at least 1, received {value}.")


def _refuse(keys: set[str], only: str, where: str) -> None:
    if keys:
        names = sorted(keys)
        verb = "is" if len(names) == 1 else "are"
        reason = f"not read {only}" if only.startswith("for a task made") else f"read only {only}"
        raise EunoeError(
            f"{where}: {' and '.join(names)} {verb} {reason}; leave {'it' if verb == 'is' else 'them'} out."
        )


def _kind(settings: TaskSettings) -> str:
    return settings.kind if settings.layout is None else LAYOUTS[settings.layout].kind


def _read(source: str, split: str, settings: TaskSettings) -> list[tuple[str, Example]]:
    """The examples of a source, each with where it stands."""
    if settings.layout is not None:
        rows = read_layout(LAYOUTS[settings.layout], source, settings.encoding, settings.line_limit)
    else:
        rows = read_rows(
            source,
            encoding=settings.encoding,
            line_limit=settings.line_limit,
            labelled=True,
            config=settings.config,
            split=split,
            revision=settings.revision,
        )
    examples = [(where, _example(record, settings, where)) for where, record in rows]
    empty = [where for where, e in examples if not all(part.strip() for part in (e.text, *e.choices, e.pair or "-"))]
    if empty:
        say_once(f"{len(empty):,} rows have an empty text and are read as they are; the first: {empty[0]}")
    if not examples:
        raise EunoeError(f"{source} ({split}) has no rows. Give labelled rows.")
    return examples


def _unlabelled(settings: TaskSettings) -> tuple[str, ...]:
    """The texts of ``settings.unlabelled``; () where there is none."""
    return () if settings.unlabelled is None else tuple(texts(CorpusSettings(source=settings.unlabelled)))


def _example(record: Record, settings: TaskSettings, where: str) -> Example:
    kind, label, pair = _kind(settings), settings.label or "label", settings.pair
    if settings.layout is not None and "pair" in record:
        pair = "pair"
    if kind == "tagging":
        words, tags = words_and_tags(record, settings.text or "text", label, where)
        return Example(" ".join(words), None, tags, tokens=words)
    first = text_cell(record, settings.text or "text", where)
    second = text_cell(record, pair, where) if pair is not None else None
    value = cell(record, label, where)
    if kind == "choice":
        choices = _choices(record, settings.choices or "choices", where)
        return Example(first, second, _index(value, len(choices), label, where), choices)
    if settings.pair_first and second is not None:
        first, second = second, first
    return Example(first, second, (_number if kind == "regression" else _class)(value, label, where))


def _choices(record: Record, columns: str | list[str], where: str) -> tuple[str, ...]:
    """The choices of a row: a list in one column, or the texts of several."""
    if isinstance(columns, list):
        choices = tuple(text_cell(record, column, where) for column in columns)
    else:
        value = cell(record, columns, where)
        if not isinstance(value, list | tuple):
            raise EunoeError(f"{where}: column {columns!r} holds {shown_value(value)}, not a list of choices. Choices in columns of "
                             "their own are named together: choices: [A, B, C].")  # fmt: skip
        choices = tuple(text_cell({f"{columns}[{i}]": one}, f"{columns}[{i}]", where) for i, one in enumerate(value))
    if len(choices) < 2:
        raise EunoeError(
            f"{where}: {len(choices)} choice{'s' * (len(choices) != 1)}; a row needs at least 2 to choose from."
        )
    return choices


def _index(value: Any, choices: int, column: str, where: str) -> int:
    """Which choice is right: a number from 0, or a letter from A."""
    text = "" if isinstance(value, bool) else str(value).strip()
    if isinstance(value, float) and value.is_integer():  # pandas writes whole numbers so where one is missing
        text = str(int(value))
    if text.isascii() and text.isdigit():
        index = int(text)
    else:
        index = ord(text.upper()) - ord("A") if len(text) == 1 and text.isascii() and text.isalpha() else -1
    if not 0 <= index < choices:
        last = f"{choices - 1} or A to {chr(ord('A') + choices - 1)}"
        raise EunoeError(f"{where}: column {column!r} holds {shown_value(value)}; of {choices} choices the right one is given by its "
                         f"place, 0 to {last}.")  # fmt: skip
    return index


def _refuse_ragged(rows: Sequence[tuple[str, Example]]) -> None:
    """Refuse rows with another number of choices than the first."""
    for where, example in rows:
        if len(example.choices) != len(rows[0][1].choices):
            raise EunoeError(f"{where}: {len(example.choices)} choices, but {rows[0][0]} has {len(rows[0][1].choices)}. Every row of a "
                             "task needs the same number: add or take out choices, or leave the row out.")  # fmt: skip


def _number(value: Any, column: str, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise EunoeError(
            f"{where}: column {column!r} holds {shown_value(value)}, not a finite number, which regression needs as a label."
        )
    return number


MISSING = ("nan", "<na>")
"""What pandas writes as text for a missing value."""


def _class(value: Any, column: str, where: str) -> str:
    """A class's name: text as it stands, whole numbers (1 and 1.0 alike) and truth values written out."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # pandas writes whole numbers so where a label is missing
        return str(int(value))
    if not isinstance(value, str):
        advice = "Write it as text or a whole number."
        if isinstance(value, float):
            missing = "The label is missing: fill it in, or leave the row out."
            advice = missing if math.isnan(value) else "If labels are numbers on a scale, set kind: regression."
        raise EunoeError(
            f"{where}: column {column!r} holds {shown_value(value)}, not a class (text or a whole number). {advice}"
        )
    if not _shown(value).strip():
        raise EunoeError(f"{where}: column {column!r} is empty. Fill in the label or leave the row out.")
    if value.strip().casefold() in MISSING:
        raise EunoeError(f"{where}: column {column!r} holds {shown_value(value)}, which is how programs write that a label is missing. "
                         "Fill it in, or leave the row out; a class of that name needs another one.")  # fmt: skip
    return text_cell({column: value}, column, where)


def _classes(settings: TaskSettings, train: list[Example], where: str) -> tuple[str, ...]:
    if _kind(settings) not in ("classification", "tagging"):
        return ()
    tags = {tag for example in train if isinstance(example.label, tuple) for tag in example.label}
    labels = tuple(sorted(tags or {str(example.label) for example in train}))
    if len(labels) < 2:
        raise EunoeError(f"{where}: all {len(train)} rows of {settings.train} have the label {shown_value(labels[0])}; "
                         "there is nothing to tell apart. Give rows of at least two classes.")  # fmt: skip
    return labels


def _shown(text: str) -> str:
    """Without the characters that do not show: of no width, marks of direction, soft hyphens, variants of a sign."""
    return "".join(c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")


def _narrow(text: str) -> str:
    """With full-width and half-width forms as the usual ones."""
    wide = ("<wide>", "<narrow>")
    return "".join(
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).startswith(wide) else c for c in text
    )


def _refuse_alike(rows: Iterable[tuple[str, Example]]) -> None:
    """Refuse two labels that a person reads as one, which would be two classes; a difference in the letters' look alone is said."""
    first: dict[str, str] = {}
    for where, example in rows:
        first.setdefault(str(example.label), where)
    same: dict[str, str] = {}
    looks: dict[str, dict[str, str]] = {"capitals": {}, "the look of letters (ligatures, raised or circled ones)": {}}
    for label, where in first.items():
        letters = unicodedata.normalize("NFC", _narrow(_shown(label)))
        plain = re.sub(r"^([+-]?\d+)\.0+$", r"\1", " ".join(letters.split()))
        other = same.setdefault(plain, label)
        if other != label:
            hidden = sorted({f"U+{ord(c):04X}" for c in label + other if not _shown(c)})
            if "".join(other.split()) == "".join(label.split()):
                how = "white space"
            elif "".join(_shown(other).split()) == "".join(_shown(label).split()):
                how = f"characters that do not show ({', '.join(hidden)})"
            else:
                how = "how they are written (1 and 1.0, composed and decomposed accents, or full-width letters)"
            raise EunoeError(f"{where}: the label {shown_value(label)} differs from {shown_value(other)} ({first[other]}) only in {how}. "
                             "Two classes would be made of one: write them alike.")  # fmt: skip
        for (how, seen), folded in zip(
            looks.items(), (plain.lower(), unicodedata.normalize("NFKC", plain).casefold()), strict=True
        ):
            near = seen.setdefault(folded, label)
            if near != label:
                say_once(
                    f"{where}: the labels {shown_value(label)} and {shown_value(near)} differ only in {how}; they are two classes"
                )
                break


def _known(rows: list[tuple[str, Example]], labels: tuple[str, ...]) -> list[Example]:
    """The examples, after refusing a label that no training row has."""
    for where, example in rows:
        if labels and example.label not in labels:
            shown = ", ".join(shown_value(label) for label in labels[:20]) + (", ..." if len(labels) > 20 else "")
            raise EunoeError(f"{where}: no training row has the label {shown_value(example.label)}. The {len(labels)} classes are {shown}. "
                             "Correct the label, leave the row out, or give training rows of this class.")  # fmt: skip
    return [example for _, example in rows]


def _labels(rows: list[Example]) -> list[str]:
    return [str(example.label) for example in rows]


def _draw(
    train: list[Example], settings: TaskSettings, classes: tuple[str, ...], where: str
) -> tuple[list[Example], int | None, dict[str, int]]:
    """The training rows after the few-shot draw, its seed, and the classes that had too few rows for it."""
    if settings.shots == "all":
        return train, None, {}
    seed = draw_seed(settings)
    assert seed is not None
    try:
        chosen, short = draw(_labels(train), settings.shots, seed, classes, settings.shots_strict)
    except EunoeError as error:
        raise EunoeError(f"{where} (train: {settings.train}): {error}") from None
    if short:
        say_once(f"{where} (train: {settings.train}): {describe(short, settings.shots)}; all there are were taken")
    return [train[i] for i in chosen], seed, short


# -- the task made from the domain itself -----------------------------------------------------------------------
def headline_pairs(documents: list[tuple[str, str]]) -> list[Example]:
    """A true pair and a false one for each (headline, article); the false headline is the next different one, cyclically.

    >>> [e.label for e in headline_pairs([("Rain", "It rained."), ("Sun", "It shone.")])]
    ['yes', 'no', 'yes', 'no']
    """
    headlines = [headline for headline, _ in documents]
    if len(set(headlines)) < 2:
        raise EunoeError(f"a false pair needs another document's headline, but {len(documents)} document"
                         f"{'s have' if len(documents) != 1 else ' has'} only {len(set(headlines))} between them.")  # fmt: skip
    pairs = []
    for i, (headline, article) in enumerate(documents):
        wrong = next(h for h in headlines[i + 1 :] + headlines[:i] if h != headline)
        pairs += [Example(headline, article, "yes"), Example(wrong, article, "no")]
    return pairs


def split_headline(text: str) -> tuple[str, str] | None:
    """First non-empty line and the rest of a document, both stripped; None where it lacks one of them."""
    headline, _, article = text.strip().partition("\n")
    return (headline.strip(), article.strip()) if article.strip() else None


def _different(texts: list[str]) -> list[tuple[str, str]]:
    """(headline, article) of each text that has both; an article that comes again, under whatever headline, counts once."""
    distinct: dict[str, tuple[str, str]] = {}
    for text in texts:
        parts = split_headline(text)
        if parts is not None:
            distinct.setdefault(" ".join(parts[1].split()), parts)
    return list(distinct.values())


def _headlines(name: str, settings: TaskSettings, corpus: CorpusSettings, where: str) -> Task:
    if corpus.documents != "file":
        raise EunoeError(f"{where}: made: headlines needs whole articles with the headline as first line; set the corpus's "
                         f"documents to file (now {corpus.documents!r}).")  # fmt: skip
    if not corpus.reserve:
        raise EunoeError(
            f"{where}: made: headlines reads documents that training does not; set the corpus's reserve above shots."
        )
    assert isinstance(settings.shots, int)
    documents = _different(sorted(part_of(corpus, "reserved"), key=place))
    train, test = documents[: settings.shots], documents[settings.shots :]
    if len(train) < 2 or len(test) < 2:
        raise EunoeError(f"{where}: shots = {settings.shots} of {len(documents)} reserved articles (reserve = {corpus.reserve}) leave "
                         f"{len(test)} to test on; both sides need at least 2. Reserve more, or change shots.")  # fmt: skip
    if settings.test_rows is not None and settings.test_rows < 2:
        raise EunoeError(
            f"{where}: test_rows must be at least 2, one true pair and one false; received {settings.test_rows}."
        )
    try:
        shots, pairs = headline_pairs(train), headline_pairs(test)
    except EunoeError as error:
        raise EunoeError(f"{where}: {error}") from None
    chosen = evenly(len(test), (settings.test_rows or len(pairs)) // 2)
    scored = [pair for i in chosen for pair in pairs[2 * i : 2 * i + 2]]
    return Task(name, "classification", ("no", "yes"), tuple(shots), tuple(scored), None)
