"""Train a language model from nothing: ``eunoe pretrain``. It makes what other runs start from, an AWD-LSTM with its tokenizer.

``OUT/forward/model`` (and ``OUT/backward/model``) is a folder as ``save_pretrained`` writes it, so ``model: {name: OUT/forward/model}``
of any recipe reads it. Beside it: ``scores.json``, ``curve.csv`` and, of the second pass, ``curve_second_pass.csv``. Each score stands
there twice, in nats a token and in nats a word of its documents with their ends of lines: with ``documents: file`` (other ways drop blank
lines) that is what published perplexities count. A training that was killed resumes and ends in the same bits; its two passes (NT-ASGD,
then averaged SGD from the best weights) are phases of ``transfer/phase.py``.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from eunoe import checkpoint, stop
from eunoe.atomic import write_text
from eunoe.choices import choose, make_optimizer
from eunoe.data.corpus import part_of
from eunoe.data.stream import StreamBatches, in_order
from eunoe.data.tokens import encode
from eunoe.errors import EunoeError
from eunoe.lookup import lookup
from eunoe.models.awd import register
from eunoe.models.awd.config import AwdLstmConfig
from eunoe.models.awd.loss import AwdLoss, Carry, linear_cross_entropy, refuse_sample
from eunoe.models.awd.model import AwdLstmForCausalLM
from eunoe.models.awd.pointer import pointer_loss
from eunoe.models.awd.tokenizer import AwdLstmTokenizer
from eunoe.models.load import load_lm
from eunoe.optim.averaged import NtAsgd, triggered
from eunoe.optim.schedules import SCHEDULES
from eunoe.optim.table import OPTIMIZERS
from eunoe.progress import say
from eunoe.recipe import LoopSettings, ModelSettings, differences, parse_yaml
from eunoe.recipe.pretraining import Pretraining
from eunoe.transfer.phase import phase

_SCORING = ("pointer", "test")
"""Keys of a recipe that move scores alone: changed where the training is done, its models are scored again."""
_MOVES_NOTHING = ("about", "directions", "published", "published_note", "scales")
"""Keys of a recipe that move no number of a direction's training; directions may be trained by processes of their own."""
BY_WORD = " by word"
"""What the name of a score in nats a word ends in."""


def pretrain(recipe: Pretraining, out: Path) -> dict[str, dict[str, float]]:
    """Train in each direction into ``out``, or resume there; returns direction -> score -> loss in nats a token, or a word.

    Nothing is written before text and settings are checked. Raises ``EunoeError`` for text that cannot be read or is too short, for a
    folder of another training, and as ``train``.
    """
    if recipe.optimizer != "nt_asgd":
        choose(OPTIMIZERS, recipe.optimizer, "recipe.optimizer", "optimizer")
    lookup(SCHEDULES, recipe.schedule, "schedule in recipe")
    register()
    _refuse_another(recipe, out)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    scores: dict[str, dict[str, float]] = {}
    for direction in recipe.directions:
        done = out / direction / "scores.json"
        if not done.is_file():
            _one(recipe, direction == "backward", out / direction)
        elif _scored_with(out / direction) != _scoring(recipe):
            say(f"{direction}: scored again, as what to score it with has changed")
            _score_again(recipe, out / direction)
        scores[direction] = {name: float(value) for name, value in json.loads(done.read_text("utf-8")).items()}
    return scores


def _written(recipe: Pretraining) -> str:
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True, width=110)


def _refuse_another(recipe: Pretraining, out: Path) -> None:
    """Refuse a folder of another training, where its models are all done of another but in what they are scored with."""
    file = out / "recipe.yaml"
    if not file.is_file():
        return
    there, now = parse_yaml(file.read_text("utf-8"), "there"), parse_yaml(_written(recipe), "now")
    done = all((out / direction / "scores.json").is_file() for direction in recipe.directions)
    free = (*_MOVES_NOTHING, *_SCORING) if done else _MOVES_NOTHING
    other = [line for line in differences(there, now) if not line.startswith(free)]
    if other:
        raise EunoeError(
            f"{out} is the folder of another training: {'; '.join(other[:3])}{' and more' * (len(other) > 3)}. Give another --out."
        )


def _scoring(recipe: Pretraining) -> dict[str, Any]:
    """What the models are scored with."""
    return {key: value for key, value in asdict(recipe).items() if key in _SCORING}


def _scored_with(out: Path) -> Any:
    """What a direction's scores were made with; None where nothing says so (eunoe wrote no scores by word then)."""
    file = out / "scored_with.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _one(recipe: Pretraining, backward: bool, out: Path) -> None:
    tokenizer = _tokenizer(recipe, out, backward)
    texts = _texts(recipe, tokenizer, ("train", "valid", "test"))
    if recipe.sampled is not None:
        refuse_sample(recipe.sampled, len(tokenizer))
    _begin(recipe, out, tokenizer)
    # the model's first weights and its batches depend on the seed alone
    torch.manual_seed(recipe.seed)
    model = AwdLstmForCausalLM(config_of(recipe, tokenizer, backward))
    say(f"{out.name}: {sum(p.numel() for p in model.parameters()):,} weights, {len(tokenizer):,} tokens of vocabulary, "
        f"{len(texts['train']):,} tokens of text")  # fmt: skip
    identity = {
        "recipe": _digest(recipe),
        "text": hashlib.sha256(texts["train"].tobytes()).hexdigest(),
        "direction": out.name,
    }
    write_text(out / "curve.csv", _pass(recipe, model, texts, out, identity, second=False))
    if recipe.finetune_epochs:
        begun = {**identity, "start": checkpoint.digest({"weights": dict(model.state_dict())})}
        write_text(out / "curve_second_pass.csv", _pass(recipe, model, texts, out, begun, second=True))
    scores = _scores(recipe, model, texts)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    write_text(out / "scored_with.json", json.dumps(_scoring(recipe), indent=1) + "\n")
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")  # last: it marks the direction as done
    shutil.rmtree(out / "steps", ignore_errors=True)


def _begin(recipe: Pretraining, out: Path, tokenizer: Any) -> None:
    """Write what says which training this is, and the vocabulary, which making anew would read all text for."""
    (out / "tokenizer").mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, AwdLstmTokenizer):
        write_text(out / "tokenizer" / "vocab.json", json.dumps(tokenizer.tokens, ensure_ascii=False))
    _refuse_another(recipe, out.parent)  # a process that began while this one read its text
    if not (out.parent / "recipe.yaml").is_file():
        write_text(out.parent / "recipe.yaml", _written(recipe))


def _score_again(recipe: Pretraining, out: Path) -> None:
    lm = load_lm(ModelSettings(name=str(out / "model")))
    assert isinstance(lm.model, AwdLstmForCausalLM)
    scores = _scores(recipe, lm.model, _texts(recipe, lm.tokenizer, ("valid", "test")))
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    write_text(out / "scored_with.json", json.dumps(_scoring(recipe), indent=1) + "\n")


def _scores(recipe: Pretraining, model: AwdLstmForCausalLM, texts: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Nats a token, and nats a word."""
    model.eval()
    scores: dict[str, float] = {}
    for name in ("valid", "test"):
        if name in texts:
            own = {name: mean_loss(model, texts[name], recipe.score_batch, recipe.bptt)}
            if recipe.pointer is not None:
                ids = torch.from_numpy(texts[name])
                own[f"{name}+pointer"] = pointer_loss(model, ids, **asdict(recipe.pointer))
            tokens_a_word = len(texts[name]) / max(1, sum(map(words_in, _sources(recipe, name))))
            scores |= own | {f"{key}{BY_WORD}": value * tokens_a_word for key, value in own.items()}
    return scores


def words_in(documents: Iterable[str]) -> int:
    """Words between white space, and an end for each line, as the programs that published perplexities count.

    >>> words_in(["the cat\\nsat", "down"])
    7
    """
    return sum(len(document.split()) + document.count("\n") + 1 for document in documents)


def config_of(recipe: Pretraining, tokenizer: Any, backward: bool) -> AwdLstmConfig:
    """The model's configuration for a tokenizer."""
    sizes = asdict(recipe.network)
    rows = max(len(tokenizer), *(row + 1 for row in tokenizer.get_vocab().values()))
    return AwdLstmConfig(
        vocab_size=rows, num_hidden_layers=sizes.pop("layers"), backward=backward, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **sizes,
    )  # fmt: skip


def _tokenizer(recipe: Pretraining, out: Path, backward: bool) -> Any:
    """The one that the text makes, or a loaded one; kept in ``out/tokenizer``, as making it reads all text."""
    from transformers import AutoTokenizer

    settings, kept = recipe.vocabulary, out / "tokenizer"
    if settings.tokenizer is not None:
        from eunoe.foreign import reading

        with reading(
            f"the tokenizer {settings.tokenizer!r}", "Name a folder or a Hugging Face model with a tokenizer."
        ):
            tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer, trust_remote_code=False)
    elif (kept / "vocab.json").is_file():
        tokenizer = AwdLstmTokenizer(str(kept / "vocab.json"), spacy=settings.spacy)
    else:
        train = (text for source in _sources(recipe, "train") for text in source)
        tokenizer = AwdLstmTokenizer.build(train, settings.largest, settings.least, settings.spacy)
    tokenizer.backward = backward
    return tokenizer


def _sources(recipe: Pretraining, name: str) -> list[Iterable[str]]:
    """The documents of a part, corpus by corpus."""
    if name == "test":
        return [part_of(recipe.test, "all")] if recipe.test is not None else []
    return [part_of(corpus, "train" if name == "train" else "valid") for corpus in recipe.corpora]


def _texts(recipe: Pretraining, tokenizer: Any, names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The parts that ``names`` lists (``test`` only where there is one) as ids, one document after the other."""
    out: dict[str, NDArray[np.int64]] = {}
    for name in names:
        pieces = [
            np.array(ids, dtype=np.int64)
            for source in _sources(recipe, name)
            for ids in encode(source, tokenizer, f"tokenising {name} text")
        ]
        ids = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
        if len(ids):
            out[name] = ids
    if missing := [name for name in names if name != "test" and name not in out]:
        lacking = "train on" if "train" in missing else "validate with"
        raise EunoeError(
            f"the corpora hold no text to {lacking}. Give more text, or set valid_share or valid of a corpus."
        )
    return out


def _digest(recipe: Pretraining) -> str:
    facts = {key: value for key, value in asdict(recipe).items() if key not in _MOVES_NOTHING}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def mean_loss(model: Any, ids: NDArray[Any], batch: int, bptt: int) -> float:
    """Mean loss (nats a token) of an ``AwdLstmForCausalLM`` on a text, read in order with its state carried, in ``batch`` rows."""
    was = model.training
    model.eval()
    device = next(model.parameters()).device
    total, n, state = 0.0, 0, None
    for inputs, targets in in_order(ids, min(batch, max(1, len(ids) // 2)), bptt):
        stop.check("scoring held-out text")
        read = model.transformer(input_ids=inputs.to(device), past_key_values=state, use_cache=True, return_dict=True)
        state = read.past_key_values
        labels = targets.to(device).flatten()
        total += float(
            linear_cross_entropy(read.last_hidden_state.flatten(0, 1), model.lm_head.weight, model.lm_head.bias, labels)
        )
        n += labels.numel()
    model.train(was)
    return total / n


# -- one pass -------------------------------------------------------------------------------------------------------------
class Validation:
    """After each epoch: the loss on held-out text with averaged weights, the best weights so far, and what follows from it.

    In the first pass averaging starts where ``triggered`` says so; in the second the pass ends there, and what the first left is its
    best so far, as in the authors' program (awd-lstm-lm, finetune.py).
    """

    def __init__(
        self, model: nn.Module, ids: NDArray[Any], recipe: Pretraining, epoch_ends: Iterable[int], second: bool
    ) -> None:
        self.model, self.ids, self.recipe, self.ends, self.second = model, ids, recipe, frozenset(epoch_ends), second
        self.optimizer: Any = None
        self.losses: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.least = math.inf
        if second:
            self.least, self.best = mean_loss(model, ids, recipe.score_batch, recipe.bptt), self._weights()

    def build(self, model: nn.Module, steps: int) -> Any:
        """The optimizer, which a pass makes when it begins or resumes."""
        recipe = self.recipe
        if recipe.optimizer == "nt_asgd":
            self.optimizer = NtAsgd(model.parameters(), recipe.lr, recipe.weight_decay, averaging=self.second)
        else:
            self.optimizer = make_optimizer(recipe.optimizer, model, recipe.lr, steps)
        return self.optimizer

    def __call__(self, step: int) -> bool:
        if step not in self.ends:
            return False
        if isinstance(self.optimizer, NtAsgd):
            with self.optimizer.averaged():
                self._score()
        else:
            self._score()
        self.model.train()
        worse = triggered(self.losses, self.recipe.patience)
        if worse and not self.second and isinstance(self.optimizer, NtAsgd) and not self.optimizer.averaging:
            say(f"epoch {len(self.losses)}: validation stopped improving, averaging starts")
            self.optimizer.start_averaging()
        return worse and self.second

    def _score(self) -> None:
        loss = mean_loss(self.model, self.ids, self.recipe.score_batch, self.recipe.bptt)
        if not math.isfinite(loss):
            raise EunoeError(
                f"the loss on held-out text is {loss} after epoch {len(self.losses) + 1}. Lower the learning rate (now {self.recipe.lr:g})."
            )
        if loss < self.least:
            self.least, self.best = loss, self._weights()
        self.losses.append(loss)
        say(f"epoch {len(self.losses)}: held-out loss {loss:.4f}, perplexity {math.exp(min(loss, 700)):.2f}")

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.losses, self.best = [float(x) for x in state["losses"]], dict(state["best"])
        self.least = min([self.least, *self.losses])


def _pass(
    recipe: Pretraining,
    model: AwdLstmForCausalLM,
    texts: Mapping[str, NDArray[Any]],
    out: Path,
    identity: Mapping[str, str],
    second: bool,
) -> str:
    """The first or the second pass; leaves the best weights in ``model`` and returns the curve."""
    folder = out / "steps" / ("second" if second else "first")
    epochs = recipe.finetune_epochs if second else recipe.epochs
    batches = StreamBatches(texts["train"], recipe.batch, recipe.bptt, epochs, recipe.seed + second, recipe.variable)
    settings = LoopSettings(
        batch=recipe.batch, steps=len(batches), lr=recipe.lr, schedule=recipe.schedule, warmup=recipe.warmup, clip=recipe.clip,
        precision=recipe.precision, checkpoint_every=recipe.checkpoint_every,
    )  # fmt: skip
    kept = folder / "best"
    if not checkpoint.whole(kept):
        validation = Validation(model, texts["valid"], recipe, batches.epoch_ends, second)
        carry = Carry({"validation": validation})
        done = phase(
            model, batches, AwdLoss(carry, recipe.alpha, recipe.beta, recipe.sampled), lambda m: validation.build(m, len(batches)),
            settings, None, {}, folder, name=f"{recipe.name} · {out.name}{' · second pass' * second}", seed=recipe.seed + second,
            identity=identity, validate=validation, carry=carry, rate_scale=batches.scale if recipe.variable else None,
        )  # fmt: skip
        for note in done.notes:
            say(f"skipped a damaged checkpoint: {note}")
        checkpoint.save(
            kept, {"best": validation.best, "losses": validation.losses, "curve": done.curve_csv()}, identity
        )
    saved = checkpoint.load(kept, identity)
    with torch.no_grad():
        named = dict(model.named_parameters())
        for name, value in saved.groups["best"].items():
            named[name].copy_(value)
    curve: str = saved.groups["curve"]
    return curve


@dataclass(frozen=True)
class Line:
    """A score as it is printed: which, our perplexity, the published one."""

    direction: str
    score: str
    perplexity: float
    published: float | None


def lines(recipe: Pretraining, scores: Mapping[str, Mapping[str, float]]) -> list[Line]:
    """The scores of ``pretrain`` as perplexities, those by word beside the published ones (which are of forward models)."""
    printed = []
    for direction, own in scores.items():
        for score, loss in own.items():
            of_words = score.endswith(BY_WORD) and direction == "forward"
            published = recipe.published.get(score.removesuffix(BY_WORD)) if of_words else None
            printed.append(Line(direction, score, math.exp(min(loss, 700)), published))
    return printed


__all__ = ["BY_WORD", "Line", "Validation", "config_of", "lines", "mean_loss", "pretrain", "words_in"]
