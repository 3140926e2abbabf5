"""Train a language model from nothing: ``eunoe pretrain``. It makes what other runs start from, an AWD-LSTM with its tokenizer.

``OUT/forward/model`` (and ``OUT/backward/model``) is a folder as ``save_pretrained`` writes it, so ``model: {name: OUT/forward/model}`` of
any recipe reads it. Beside it: ``scores.json``, ``curve.csv``. A training that was killed resumes and ends in the same bits; its two
passes (NT-ASGD, then averaged SGD from the best weights) are phases of ``transfer/phase.py``.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
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
from eunoe.models.awd import register
from eunoe.models.awd.config import AwdLstmConfig
from eunoe.models.awd.loss import AwdLoss, Carry, linear_cross_entropy
from eunoe.models.awd.model import AwdLstmForCausalLM
from eunoe.models.awd.pointer import pointer_loss
from eunoe.models.awd.tokenizer import AwdLstmTokenizer
from eunoe.optim.averaged import NtAsgd, triggered
from eunoe.optim.table import OPTIMIZERS
from eunoe.progress import say
from eunoe.recipe import LoopSettings, differences, parse_yaml
from eunoe.recipe.pretraining import Pretraining
from eunoe.transfer.phase import phase

_MOVES_NOTHING = ("about", "directions", "published", "published_note", "scales")
"""Keys of a recipe that move no number of a direction's training; directions may be trained by processes of their own."""


def pretrain(recipe: Pretraining, out: Path) -> dict[str, dict[str, float]]:
    """Train in each direction into ``out``, or resume there; returns direction -> score -> loss in nats a token.

    Raises ``EunoeError`` for text that cannot be read or is too short, for a folder of another training, and as ``train``.
    """
    if recipe.optimizer != "nt_asgd":
        choose(OPTIMIZERS, recipe.optimizer, "recipe.optimizer", "optimizer")
    register()
    _same_training(recipe, out)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    scores: dict[str, dict[str, float]] = {}
    for direction in recipe.directions:
        done = out / direction / "scores.json"
        if not done.is_file():
            _one(recipe, direction == "backward", out / direction)
        scores[direction] = {name: float(value) for name, value in json.loads(done.read_text("utf-8")).items()}
    return scores


def _same_training(recipe: Pretraining, out: Path) -> None:
    text, file = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True, width=110), out / "recipe.yaml"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    other = differences(parse_yaml(file.read_text("utf-8"), "there"), parse_yaml(text, "now"))
    other = [line for line in other if not line.startswith(_MOVES_NOTHING)]
    if other:
        raise EunoeError(
            f"{out} is the folder of another training: {'; '.join(other[:3])}{' and more' * (len(other) > 3)}. Give another --out."
        )


def _one(recipe: Pretraining, backward: bool, out: Path) -> None:
    tokenizer = _tokenizer(recipe, out, backward)
    texts = _texts(recipe, tokenizer)
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
    curve = _pass(recipe, model, texts, out, identity, second=False)
    if recipe.finetune_epochs:
        _pass(
            recipe,
            model,
            texts,
            out,
            {**identity, "start": checkpoint.digest({"weights": dict(model.state_dict())})},
            second=True,
        )
    model.eval()
    scores: dict[str, float] = {}
    for name in ("valid", "test"):
        if name in texts:
            scores[name] = mean_loss(model, texts[name], recipe.score_batch, recipe.bptt)
            if recipe.pointer is not None:
                scores[f"{name}+pointer"] = pointer_loss(model, torch.from_numpy(texts[name]), **asdict(recipe.pointer))
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    write_text(out / "curve.csv", curve)
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")  # last: it marks the direction as done
    shutil.rmtree(out / "steps", ignore_errors=True)


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
        train = (text for corpus in recipe.corpora for text in part_of(corpus, "train"))
        tokenizer = AwdLstmTokenizer.build(train, settings.largest, settings.least, settings.spacy)
        kept.mkdir(parents=True, exist_ok=True)
        write_text(kept / "vocab.json", json.dumps(tokenizer.tokens, ensure_ascii=False))
    tokenizer.backward = backward
    return tokenizer


def _texts(recipe: Pretraining, tokenizer: Any) -> dict[str, NDArray[np.int64]]:
    """``train``, ``valid`` (where any is held out) and ``test`` as ids, one document after the other."""
    parts: dict[str, list[Iterable[str]]] = {
        "train": [part_of(corpus, "train") for corpus in recipe.corpora],
        "valid": [part_of(corpus, "valid") for corpus in recipe.corpora],
        "test": [part_of(recipe.test, "all")] if recipe.test is not None else [],
    }
    out: dict[str, NDArray[np.int64]] = {}
    for name, sources in parts.items():
        pieces = [
            np.array(ids, dtype=np.int64)
            for source in sources
            for ids in encode(source, tokenizer, f"tokenising {name} text")
        ]
        ids = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
        if len(ids):
            out[name] = ids
    if not {"train", "valid"} <= out.keys():
        lacking = "train on" if "train" not in out else "validate with"
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

    In the first pass averaging starts where ``triggered`` says so; in the second the pass ends there.
    """

    def __init__(
        self, model: nn.Module, ids: NDArray[Any], recipe: Pretraining, epoch_ends: Iterable[int], second: bool
    ) -> None:
        self.model, self.ids, self.recipe, self.ends, self.second = model, ids, recipe, frozenset(epoch_ends), second
        self.optimizer: Any = None
        self.losses: list[float] = []
        self.best: dict[str, Tensor] = {}

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
        if not self.losses or loss < min(self.losses):
            self.best = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.losses.append(loss)
        say(f"epoch {len(self.losses)}: held-out loss {loss:.4f}, perplexity {math.exp(min(loss, 700)):.2f}")

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.losses, self.best = [float(x) for x in state["losses"]], dict(state["best"])


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
    validation = Validation(model, texts["valid"], recipe, batches.epoch_ends, second)
    carry = Carry({"validation": validation})
    settings = LoopSettings(
        batch=recipe.batch, steps=len(batches), lr=recipe.lr, schedule=recipe.schedule, warmup=recipe.warmup, clip=recipe.clip,
        precision=recipe.precision, checkpoint_every=recipe.checkpoint_every,
    )  # fmt: skip
    kept = folder / "best"
    if not checkpoint.whole(kept):
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
    """The scores of ``pretrain`` as perplexities, beside the published ones (which are of forward models)."""
    return [
        Line(
            direction, score, math.exp(min(loss, 700)), recipe.published.get(score) if direction == "forward" else None
        )
        for direction, own in scores.items()
        for score, loss in own.items()
    ]


__all__ = ["Line", "Validation", "config_of", "lines", "mean_loss", "pretrain"]
