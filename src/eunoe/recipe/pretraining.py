"""A language model trained from nothing, as typed dataclasses: every key of a recipe of ``eunoe pretrain``, its type and its default.

Defaults are Merity et al.'s program (arXiv 1708.02182) where the paper's model is meant, so a recipe without settings is theirs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown
from eunoe.recipe.build import build
from eunoe.recipe.override import Overrides, override, pairs
from eunoe.recipe.paths import as_path
from eunoe.recipe.ranges import Batch, Below1, Count, Name, Positive, Seed, Share, Threads
from eunoe.recipe.read import shipped_recipes
from eunoe.recipe.settings import CorpusSettings
from eunoe.recipe.strict import read_yaml, unshared


@dataclass(kw_only=True)
class VocabularySettings:
    """Where tokens come from."""

    tokenizer: str | None = None
    """A folder or Hugging Face name whose tokenizer cuts text into sub-words; default: the words of the training text."""
    largest: Annotated[int, Field(ge=20, le=10_000_000)] = 60_000
    """Tokens of a vocabulary of words at most."""
    least: Count = 2
    """How often a word stands in the training text at least."""
    spacy: bool = False
    """Cut words by the package spaCy, as fastai does."""


@dataclass(kw_only=True)
class NetworkSettings:
    """How large the AWD-LSTM is, and its five dropouts."""

    hidden_size: Batch = 400
    """Width of the embedding and of the last layer."""
    cell_size: Batch = 1150
    """Width of the layers between."""
    layers: Annotated[int, Field(ge=1, le=100)] = 3
    """LSTM layers."""
    output_dropout: Below1 = 0.4
    """On the last layer's output."""
    hidden_dropout: Below1 = 0.3
    """Between layers."""
    input_dropout: Below1 = 0.65
    """On the embedded text."""
    embedding_dropout: Below1 = 0.1
    """Of whole word types."""
    weight_dropout: Below1 = 0.5
    """Of hidden-to-hidden weights."""


@dataclass(kw_only=True)
class PointerSettings:
    """A cache of recent words at the scoring (models/awd/pointer.py)."""

    window: Count
    """Positions that it holds."""
    theta: Positive
    """Sharpness of its softmax."""
    share: Share
    """Its share in the chance of a word."""


@dataclass(kw_only=True)
class Pretraining:
    """One language model, trained from nothing on text, in one or both directions."""

    name: Name
    """Name of the training: letters, digits, ``-`` and ``_``."""
    about: str = ""
    """What it is for."""
    corpora: Annotated[list[CorpusSettings], Field(min_length=1)]
    """Text to train on, and what of it is held out for validation."""
    test: CorpusSettings | None = None
    """Text to score at the end, besides the held-out text."""
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    """Where tokens come from."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    """The model's size and dropouts."""
    directions: Annotated[list[Literal["forward", "backward"]], Field(min_length=1)] = field(
        default_factory=lambda: ["forward"]
    )
    """``backward``: a model of text read from its end."""
    batch: Batch = 80
    """Rows that the text is cut into."""
    bptt: Annotated[int, Field(ge=5, le=100_000)] = 70
    """Tokens that gradients reach back, about."""
    variable: bool = True
    """Vary this length from batch to batch, and the learning rate with it."""
    epochs: Count = 500
    """Passes over the text."""
    lr: Positive = 30.0
    """Highest learning rate."""
    schedule: str = "constant"
    """Of the learning rate: linear | cosine | constant, after the warm-up."""
    warmup: Below1 = 0.0
    """Share of the steps over which the learning rate rises."""
    clip: Positive | None = 0.25
    """Largest gradient norm; null: no clipping."""
    optimizer: Any = "nt_asgd"
    """``nt_asgd``: SGD that averages once validation stops improving; or a name of the optimizer table with its options."""
    weight_decay: Annotated[float, Field(ge=0)] = 1.2e-6
    """Of ``nt_asgd``; others have it among their options."""
    patience: Count = 5
    """n of the test that starts averaging, and that ends the fine-tuning pass: worse than the best of all epochs before the last n."""
    finetune_epochs: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """The second pass: from the best weights on, averaging from its first step. At most this many epochs; 0: none."""
    alpha: Annotated[float, Field(ge=0)] = 2.0
    """Weight of AR: small activations."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of TAR: activations that change slowly."""
    sampled: Count | None = None
    """Compare each word with this many others instead of the whole vocabulary (sampled softmax)."""
    pointer: PointerSettings | None = None
    """Score with a cache of recent words too."""
    score_batch: Batch = 10
    """Rows that held-out text is cut into for scoring."""
    seed: Seed = 0
    """Of first weights, lengths and dropout."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Of products, as in a run's ``training``."""
    threads: Threads | None = None
    """Threads to compute with; null: as many as torch takes."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    published: dict[str, float] = field(default_factory=dict)
    """Score (``valid``, ``test``, ``valid+pointer``, ``test+pointer``) -> the published perplexity, printed beside ours."""
    published_note: str | None = None
    """Where the published numbers come from."""
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named sets of overrides, chosen by ``--scale``."""

    def __post_init__(self) -> None:
        if len(set(self.directions)) < len(self.directions):
            raise EunoeError(f"directions are {self.directions}; give each once.")
        if isinstance(self.optimizer, dict) and self.optimizer.get("name") == "nt_asgd":
            raise EunoeError(f"optimizer is {self.optimizer}; write optimizer: nt_asgd. Its options, weight_decay and patience, are keys "
                             "of the recipe.")  # fmt: skip
        if self.finetune_epochs and self.optimizer != "nt_asgd":
            raise EunoeError(f"finetune_epochs is {self.finetune_epochs}, a pass of averaged SGD, but optimizer is {self.optimizer!r}. "
                             "Leave one of them out.")  # fmt: skip
        for name in ("weight_decay", "patience"):
            if self.optimizer != "nt_asgd" and getattr(self, name) != getattr(Pretraining, name):
                where = " Set it among the optimizer's options." if name == "weight_decay" else " Leave it out."
                raise EunoeError(
                    f"{name} is {getattr(self, name):g}, which only nt_asgd reads, but optimizer is {self.optimizer!r}.{where}"
                )
        for name in ("largest", "least", "spacy"):
            if self.vocabulary.tokenizer is not None and getattr(self.vocabulary, name) != getattr(
                VocabularySettings, name
            ):
                raise EunoeError(f"vocabulary.{name} is of a vocabulary of words, but vocabulary.tokenizer is "
                                 f"{self.vocabulary.tokenizer!r}. Leave one of them out.")  # fmt: skip


def load_pretraining(path: str | os.PathLike[str], overrides: Overrides = (), scale: str | None = None) -> Pretraining:
    """Read a recipe of ``eunoe pretrain`` (a YAML file, or the name of a shipped one); raises ``EunoeError`` as ``load_recipe``."""
    file = as_path(path, "the recipe")
    if not os.path.isfile(file):
        known = shipped_recipes("pretrain")
        if str(path) not in known:
            raise EunoeError(
                f"{unknown(str(path), known, 'recipe of a language model')} Or give the path of a YAML file."
            )
        file = known[str(path)]
    data = read_yaml(file)
    if not isinstance(data, dict):
        raise EunoeError(f"{file} holds {type(data).__name__}, not the keys of a recipe.")
    if scale is not None:
        for key, value in unshared(lookup(data.get("scales") or {}, scale, "scale")).items():
            override(data, str(key), value)
    return pretraining_of(data, overrides)


def pretraining_of(data: dict[str, Any], overrides: Overrides = ()) -> Pretraining:
    """The recipe that plain data describes, after overrides."""
    for key, value in pairs(overrides):
        override(data, key, value)
    return build(Pretraining, data, "recipe")


__all__ = [
    "NetworkSettings",
    "PointerSettings",
    "Pretraining",
    "VocabularySettings",
    "load_pretraining",
    "pretraining_of",
]
