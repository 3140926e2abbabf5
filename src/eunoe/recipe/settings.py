"""A whole run, and a fine-tuning study, as typed dataclasses: every key of a recipe, its type and its default.

Options of methods, transfers and optimizers are typed by their owners; here they stand as plain mappings until ``plan.py``
hands them over (``build``), so no key can go unread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from eunoe.errors import EunoeError
from eunoe.recipe.ranges import Batch, Below1, Block, Count, Epochs, Name, Positive, Seed, Seeds, Share, Threads

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


@dataclass(kw_only=True)
class CorpusSettings:
    """Unlabelled text: where it lies and which part of it is held out."""

    source: str
    """A file of plain text (.txt, .md, .html, ...) or .jsonl/.csv/.tsv/.parquet (plain or .gz), a folder of them,
    ``package:NAME/folder`` (files that an installed Python package carries) or ``hub:OWNER/NAME`` (a Hugging Face dataset)."""
    files: str | None = None
    """Which files of a folder are read, as in ``"**/*.md"``; default: all whose ending is known. Hidden ones never are."""
    column: str | None = None
    """Column that holds the text (default ``text``); plain text has none."""
    documents: Literal["paragraphs", "lines", "file"] | None = None
    """What one document of plain text is (default ``paragraphs``: blank lines separate them)."""
    encoding: str | None = None
    """Encoding of the files, as in ``gb18030`` (default UTF-8); a byte-order mark in a file goes before it."""
    fallback_encoding: str | None = None
    """Encoding of each file that is not UTF-8, as in ``cp1252``; the whole file is read in it."""
    line_limit: Annotated[int, Field(ge=1)] | None = None
    """Bytes that one line, row or document may have (default 16 MiB); a larger one is refused before it takes memory."""
    config: str | None = None
    """Configuration of a hub dataset."""
    revision: str | None = None
    """Commit, branch or tag of a hub dataset (default: the newest). Without a commit, the one that the hub names is noted
    where it can be asked, so that a resumed run notices other text."""
    split: str | None = None
    """Split of a hub dataset (default ``train``; of ``valid`` it is ``validation`` unless it ends in ``#SPLIT``)."""
    valid: str | None = None
    """A source of its own for the held-out text; else a share of the documents is held out."""
    valid_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the documents held out, chosen by a hash of their text (default 0.05); of text that is too few documents
    for that, the last blocks."""
    reserve: Annotated[int, Field(ge=0)] = 0
    """This many documents, chosen by hash, are read by neither part: an end task is made from them."""
    tokens: Annotated[int, Field(ge=1)] | None = None
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
    unlabelled: str | None = None
    """More text of the task, without labels: a file with a column ``text``, plain text (a document a paragraph) or
    ``hub:OWNER/NAME#SPLIT``. Read by transfers that fine-tune the language model before the classifier."""
    config: str | None = None
    """Configuration of a hub dataset."""
    revision: str | None = None
    """Commit, branch or tag of a hub dataset (default: the newest)."""
    text: str | None = None
    """Column of the text (default ``text``)."""
    pair: str | None = None
    """Column of a second text, for tasks over pairs; it is given to the model first if ``pair_first``."""
    pair_first: bool = False
    """Put the second column before the first (CPT's aspect task reads ``term SEP sentence``)."""
    label: str | None = None
    """Column of the label (default ``label``)."""
    encoding: str | None = None
    """Encoding of the files, as in ``gb18030`` (default UTF-8); a byte-order mark in a file goes before it."""
    line_limit: Annotated[int, Field(ge=1)] | None = None
    """Bytes that one line or row may have (default 16 MiB); a larger one is refused before it takes memory."""
    kind: Literal["classification", "regression", "choice", "tagging"] = "classification"
    """``regression`` reads numbers as labels and scores Pearson and Spearman correlation; ``choice`` is multiple choice: of each
    row's ``choices`` the label names the right one, by its place from 0 or by a letter from A; ``tagging``: ``text`` and ``label``
    are lists, a tag for each word."""
    choices: str | list[str] | None = None
    """Column that holds the list of choices, or several columns of one each; read with ``kind: choice``. ``text`` is then the context
    and ``pair`` the question."""
    layout: Literal["race", "story_cloze", "snli", "scitail", "conll"] | None = None
    """Read ``train`` and ``test`` as that data set's official files hold them (``conll``: column files of words with
    tags); kind and columns are then known."""
    shots: Literal["cpt", "all"] | Count = "all"
    """``cpt``: the paper's rule (32 in all, or 8 a class from 5 classes on); a number: that many a class; ``all``."""
    shots_seed: Seed | Seeds = 2022
    """Seed of the few-shot draw (CPT: 2022); several, ``[2022, 2023]``: the end task is fine-tuned on each draw, and a
    score is the mean over them (a domain's end task only)."""
    shots_strict: bool = False
    """Refuse a draw for which a class has too few rows; otherwise all that it has are taken, and the rows of scores say so."""
    resplit: Share | None = None
    """CPT's resplit rule with this r: dev joins test, then floor(N(1-r)/C) of each class move from train to test."""
    test_share: Share | None = None
    """Share of ``train`` that becomes the test set where no ``test`` is given (CPT's AG News: 0.1, seed 2021)."""
    test_rows: Count | None = None
    """Score on at most this many test rows, spread evenly."""


@dataclass(kw_only=True)
class DomainSettings:
    """One domain: its name, its unlabelled text, its end task."""

    name: Name
    """Letters, digits, ``-`` and ``_``."""
    corpus: CorpusSettings
    """The text to post-train on."""
    task: TaskSettings | None = None
    """The end task to score after fine-tuning a copy."""


@dataclass(kw_only=True)
class HeadSettings:
    """How an LM head (and a low-rank change of the encoder) is trained for an encoder that has none."""

    corpora: Annotated[list[CorpusSettings], Field(min_length=1)]
    """General text to train it on."""
    rank: Annotated[int, Field(ge=0, le=100_000)] = 16
    """Rank of the change beside every linear layer of the encoder; 0 trains the head alone."""
    block: Block = 128
    """Tokens in a block."""
    batch: Batch = 16
    """Blocks in a step."""
    steps: Count = 600
    """Optimizer steps."""
    mask_rate: Share = 0.15
    """Share of the tokens that are a masked LM's targets."""
    lr: Positive = 2e-3
    """Highest learning rate."""
    warmup: Below1 = 0.05
    """Share of the steps over which the learning rate rises; then it falls linearly to 0."""
    checkpoint_every: Count = 100
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
    dropout: Below1 | None = None
    """Overrides every dropout rate of the model's configuration."""


@dataclass(kw_only=True)
class LoopSettings:
    """What the training loop reads. Defaults are CPT's post-training (batch 48, 1e-4, one epoch, linear, 10%)."""

    batch: Batch = 48
    """Blocks (or labelled rows) in one optimizer step."""
    micro_batch: Batch | None = None
    """Blocks that pass the model at once; a step accumulates batch / micro_batch of them. Default: all."""
    epochs: Epochs = 1.0
    """Passes over the data."""
    steps: Count | None = None
    """Optimizer steps, instead of ``epochs``."""
    lr: Positive = 1e-4
    """Highest learning rate."""
    schedule: str = "linear"
    """linear | cosine | constant, after the warm-up."""
    warmup: Below1 = 0.1
    """Share of the steps over which the learning rate rises to its highest; the first step already trains."""
    clip: Positive | None = 1.0
    """Largest gradient norm; null: no clipping."""
    clip_by: Literal["global", "tensor"] = "global"
    """``global``: one norm over all weights; ``tensor``: each weight by itself, as CPT's optimizer does."""
    optimizer: Any = "adamw"
    """A name of the optimizer table, or a mapping ``{name: recadam, gamma: 5000, ...}``."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """``auto``: bf16 on a GPU that has it and on a CPU with units for it (AVX512_BF16, AMX), else float32; it is written out.
    Weights, scores and anchors are float32 in any case."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise EunoeError(f"micro_batch must divide batch = {self.batch}, received {self.micro_batch}.")


@dataclass(kw_only=True)
class TrainingSettings(LoopSettings):
    """Post-training on unlabelled text."""

    block: Block = 164
    """Tokens in a block (CPT: 164)."""
    mask_rate: Share = 0.15
    """Share of the tokens that are a masked LM's targets (80/10/10 rule)."""


@dataclass(kw_only=True)
class PromptText:
    """A prompt, and the domain whose text it is."""

    text: str
    """What the model reads."""
    domain: Name | None = None
    """The domain that methods with plug-ins, masks or experts read it as; without it they read it as none, and as the last one."""


@dataclass(kw_only=True)
class EvaluationSettings:
    """What is scored after each domain."""

    blocks: Count | None = 256
    """Held-out blocks a domain, spread evenly; null: all."""
    batch: Batch = 32
    """Blocks, or labelled rows, that pass the model at once."""
    matrix: Literal["full", "ends"] = "full"
    """``full``: after each domain the end tasks of all domains so far; ``ends``: the diagonal and the last row."""
    retention: bool = False
    """After each end task's fine-tuning, measure on the general text how much of the pretrained model is preserved."""
    base: bool = True
    """Also score the end tasks from the pretrained model, before any domain."""
    prompts: list[str | PromptText] = field(default_factory=list)
    """Put to the model before the first domain and after the last; what it answers stands on the report and in ``samples.jsonl``.
    A causal LM continues a prompt; a masked LM fills in its mask tokens, as in ``"The team [MASK] the match."``."""
    answer_tokens: Batch = 48
    """Tokens of a causal LM's answer at most."""

    @property
    def asked(self) -> list[PromptText]:
        """The prompts, with those that are given as text alone."""
        return [PromptText(text=one) if isinstance(one, str) else one for one in self.prompts]


@dataclass(kw_only=True)
class Recipe:
    """One run: each method learns the domains in each order with each seed; scores become rows."""

    name: Name
    """Name of the run: letters, digits, ``-`` and ``_``."""
    about: str = ""
    """What this run is for; `eunoe list recipes` prints it, and it stands among the settings on the report."""
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
    orders: dict[Name, list[str]] = field(default_factory=dict)
    """Named orders of the domains; default: one, ``given``. A domain may return, for methods that can learn it again."""
    seeds: Seeds = field(default_factory=lambda: [0])
    """Seeds of masking, dropout, plug-ins and classifiers."""
    threads: Threads | Literal["auto"] = "auto"
    """Threads that a cell computes with; ``auto``: one for models below 100M weights, else all cores. It is written out as a
    number, because sums of other lengths end in other bits."""
    trackers: list[Tracker] = field(default_factory=list)
    """Where curves and scores also go while it runs: ``tensorboard``, ``wandb``, ``trackio``, ``mlflow`` (extra ``trackers``). They change
    no number, so a run may be resumed with others, or without."""
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named sets of overrides, ``{full: {training.block: 164}}``, chosen by ``--scale``."""


# -- fine-tuning studies ---------------------------------------------------------------------------------------
@dataclass(kw_only=True)
class StudyTask(TaskSettings):
    """One labelled task of a study: a GLUE task, or rows of your own as in a domain's ``task``."""

    name: Name
    """Letters, digits, ``-`` and ``_``."""
    glue: str | None = None
    """A GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli; scored on its development set."""
    folder: str | None = None
    """Folder of the official GLUE layout (``folder/CoLA/train.tsv``), or ``hub``; read with ``glue``."""
    train_rows: Count | None = None
    """Fine-tune on at most this many rows, spread evenly."""
    seeds: Seeds | None = None
    """Seeds of this task instead of the study's."""
    transfer: dict[str, Any] = field(default_factory=dict)
    """Settings of the transfer for this task alone, over those of every system."""


@dataclass(kw_only=True)
class SearchSettings:
    """How a system with a grid is set: every point with one seed; the best then runs with the study's seeds."""

    seed: Seed
    """Seed of the search; it may not be among the study's seeds."""
    by: Literal["last", "best"] = "last"
    """Compare the scores after the last step, or the best of all evaluations."""


@dataclass(kw_only=True)
class StudyEvaluation:
    """How a study scores."""

    batch: Batch = 64
    """Labelled rows, or blocks, that pass the model at once."""
    block: Block = 128
    """Tokens in a block of retention text."""
    blocks: Count | None = 64
    """Blocks a retention text, spread evenly; null: all."""
    mask_rate: Share = 0.15
    """Share of the tokens that are a masked LM's targets."""
    predict_test: bool = False
    """Also answer the unlabelled test rows of GLUE tasks, for a submission."""


@dataclass(kw_only=True)
class Study:
    """A fine-tuning study: one pretrained model, labelled tasks, systems that fine-tune it, seeds."""

    name: Name
    """Name of the study: letters, digits, ``-`` and ``_``."""
    about: str = ""
    """What this study is for; `eunoe list recipes` prints it, and it stands among the settings on the report."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The pretrained language model."""
    tasks: Annotated[list[StudyTask], Field(min_length=1)]
    """The labelled tasks."""
    systems: Annotated[dict[Name, Any], Field(min_length=1)]
    """Label -> a transfer with its options; ``grid: {lr: [1e-4, 2e-4]}`` makes one point of each combination, ``model`` gives the system
    a model of its own, as a name or with settings."""
    search: SearchSettings | None = None
    """How the points of grids are chosen from; without it every point gets every seed."""
    seeds: Seeds = field(default_factory=lambda: [0])
    """Seeds of classifiers, row order and dropout."""
    retention: dict[Name, CorpusSettings] = field(default_factory=dict)
    """Name -> general text: how much of the pretrained model each fine-tuning preserves is measured on it."""
    evaluation: StudyEvaluation = field(default_factory=StudyEvaluation)
    """How scores are made."""
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """System, or one point of its grid as rows call it (``recadam[k=0]``) -> task -> the published score, in points, printed
    beside ours; ``f1@TASK``: of another metric than the task's first; ``anchor_distance@TASK`` and ``loss@TASK``: the distance and
    the training loss at the end of the run."""
    published_note: str | None = None
    """Where the published numbers come from and of what model they are; printed below them."""
    threads: Threads | Literal["auto"] = "auto"
    """Threads that a cell computes with; ``auto``: one for models below 100M weights, else all cores. It is written out as a
    number, because sums of other lengths end in other bits."""
    trackers: list[Tracker] = field(default_factory=list)
    """Where curves and scores also go while it runs: ``tensorboard``, ``wandb``, ``trackio``, ``mlflow`` (extra ``trackers``). They change
    no number, so a run may be resumed with others, or without."""
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named sets of overrides, chosen by ``--scale``."""
