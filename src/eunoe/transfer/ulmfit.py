"""ULMFiT: the language model is fine-tuned on the task's text, then a classifier on it, unfrozen from the top (ACL 2018).

Paper: Howard and Ruder, https://arxiv.org/abs/1801.06146; the released scripts are fast.ai's for IMDb. Discriminative learning rates,
slanted triangle, gradual unfreezing, concat pooling, batch-norm head, BPT3C, forward and backward models together; every row
of the paper's ablation is an option. Works on any Hugging Face language model and on AWD-LSTM, the paper's own.

Different from paper and scripts:

- Each phase of unfreezing has a triangle of its own, as in the scripts; the paper does not say.
- Padding is masked in the pooling, and in AR and TAR, which are means over each row's tokens; the scripts count padded steps.
- The paper's other rows of the ablation stop early, by a validation set; here each trains ``epochs`` passes.
- A transformer carries no state from chunk to chunk: with ``chunk`` each chunk is read by itself, and the pooling joins them.
  Encoders read their first chunk with its first token and the others without one.
- A batch of one row has no batch statistics: it is normed by the running ones.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from eunoe import checkpoint, stop
from eunoe.choices import make_optimizer
from eunoe.data.cache import sha256
from eunoe.data.collate import Batch, RowBatches, Rows, by_length
from eunoe.data.tasks import Example, Task
from eunoe.data.tokens import backward
from eunoe.data.tokens import identity as tokenizer_identity
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import Score, answer_scores
from eunoe.methods.base import restore
from eunoe.models.anatomy import RECURRENT, anatomy
from eunoe.models.awd.config import CLASSIFIER_RATES, LM_RATES
from eunoe.models.awd.model import set_rates
from eunoe.models.awd.tokenizer import AwdLstmTokenizer
from eunoe.models.cross_entropy import at_least_float32
from eunoe.models.depth import depth_groups
from eunoe.models.heads import Classifier, LossSum
from eunoe.models.load import LanguageModel, pretrained, refuse_longer
from eunoe.models.pooled import PooledClassifier
from eunoe.optim.schedules import multiplier, slanted_triangle
from eunoe.optim.unfreeze import unfreezing_phases
from eunoe.progress import say
from eunoe.recipe import LoopSettings, ModelSettings
from eunoe.train import Trained
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.finetune import FinetuneSettings, encode_examples, encode_task, start_afresh, task_loss
from eunoe.transfer.lm_text import LMStage, LMTraining, check_words, in_words_of, lm_training, text_ids
from eunoe.transfer.phase import phase
from eunoe.transfer.readers import weights_identity
from eunoe.transfer.ulmfit_settings import (
    SCRIPTS_CUT,
    SCRIPTS_LAST_CUT,
    UlmfitSettings,
    for_model,
    phase_steps,
    refuse_unread,
    resolve,
    shares_of,
    wrong_shares,
)


def check(lm: LanguageModel, task: Task, settings: UlmfitSettings, where: str) -> None:
    """Refuse tasks, lengths, texts and phases that do not fit, of the model and of the backward one."""
    if task.kind not in ("classification", "regression"):
        raise EunoeError(
            f"{where}: ulmfit classifies texts, but the task {task.name!r} is of the kind {task.kind}. Choose another transfer."
        )
    if len(task.labels) > len(task.train):
        raise EunoeError(f"task {task.name!r} has {len(task.labels)} classes but {len(task.train)} rows to train on: some classes would "
                         "have none. Give more rows (shots).")  # fmt: skip
    others = _backward(settings)
    for model in others:
        if not backward(model.tokenizer):
            raise EunoeError(f"{where}.backward: {model.name!r} reads forward, as the model beside it does. Give a model that was trained "
                             "on text read from its end (eunoe pretrain --directions '[backward]'), or leave it out.")  # fmt: skip
        if backward(lm.tokenizer):
            raise EunoeError(f"{where}.backward names a second model that reads backward, beside {lm.name!r}. Give a model that reads "
                             "forward as the model, or leave backward out.")  # fmt: skip
    for model in (lm, *others):
        _check(model, task, for_model(settings, model), where)


def reads(settings: UlmfitSettings) -> dict[str, str]:
    """The backward model, where there is one."""
    models = _backward(settings)
    return {"backward model": models[0].identity} if models else {}


def _check(lm: LanguageModel, task: Task, settings: UlmfitSettings, where: str) -> None:
    recurrent = anatomy(lm.model).model_type in RECURRENT
    refuse_unread(settings, isinstance(lm.tokenizer, AwdLstmTokenizer), lm.objective, where)
    if not recurrent:
        at_once = min(n for n in (settings.chunk, settings.max_length) if n is not None)
        refuse_longer(lm, at_once, f"{where}.{'max_length' if settings.chunk is None else 'chunk'}")
        for name in ("alpha", "beta"):
            if getattr(settings, name):
                preset = "" if settings.preset == "transformer" else f" (preset: {settings.preset} is for an AWD-LSTM)"
                raise EunoeError(f"{where}.{name} is {getattr(settings, name):g}{preset}, but {lm.name!r} has no recurrent states to "
                                 "regularise. Set it to 0, or take preset: transformer.")  # fmt: skip
        if settings.dropout != 1.0:
            raise EunoeError(f"{where}.dropout is {settings.dropout:g}, which multiplies the dropout of an AWD-LSTM; for {lm.name!r} set "
                             "model.dropout.")  # fmt: skip
    elif max(settings.dropout * rate for rate in (*LM_RATES.values(), *CLASSIFIER_RATES.values())) >= 1:
        most = 1 / max(*LM_RATES.values(), *CLASSIFIER_RATES.values())
        raise EunoeError(
            f"{where}.dropout is {settings.dropout:g}, which makes a dropout rate of 1 or more. Set it below {most:.3g}."
        )
    if (settings.micro_batch == 1 or settings.batch == 1) and settings.pooling == "concat":
        raise EunoeError(f"{where}: a batch of one row has no batch statistics for the head's batch norm. Set batch and micro_batch "
                         "to 2 or more, or pooling to first, last or mean.")  # fmt: skip
    if settings.micro_batch is not None and (settings.batch or 0) % settings.micro_batch:
        raise EunoeError(f"{where}: micro_batch must divide batch = {settings.batch}, received {settings.micro_batch}.")
    if _tunes(settings):
        block = settings.lm.block or 0
        if not recurrent:
            refuse_longer(lm, block, f"{where}.lm.block")
        lm_training(lm, task, settings.lm, 0, settings.micro_batch, f"{where}.lm")
        if isinstance(settings.lm.discriminative, list):
            shares_of(
                settings.lm.discriminative, None, depth_groups(lm.model, tied="head"), f"{where}.lm.discriminative"
            )
    check_words(lm, task, settings.lm, f"{where}.lm", afresh=settings.start == "random")
    groups = len(anatomy(lm.model).layers) + 2
    if isinstance(settings.discriminative, list) and len(settings.discriminative) != groups:
        raise wrong_shares(settings.discriminative, groups, f"{where}.discriminative")
    phase_steps(
        settings, len(task.train), len(unfreezing_phases(settings.unfreeze, groups, settings.unfreeze_most)), where
    )
    _rows(lm, task, settings)


WHOLE = 2**31 - 1
"""Tokens of a row that is not cut."""


def _rows(lm: LanguageModel, task: Task, settings: UlmfitSettings) -> Rows:
    """The training rows as token ids, from where ``finetune`` keeps them too."""
    return encode_task(lm, task, FinetuneSettings(max_length=settings.max_length or WHOLE))[0]


def _tunes(settings: UlmfitSettings) -> bool:
    return settings.lm.tune == "full"


def _backward(settings: UlmfitSettings) -> list[LanguageModel]:
    return [] if settings.backward is None else [pretrained(ModelSettings(name=settings.backward))]


def _heights(schedule: str | None, steps: int, cut_frac: float | None, ratio: float | None) -> Callable[[int], float]:
    """Step -> what the learning rates are multiplied by."""
    if schedule == "slanted_triangle":
        return lambda step: slanted_triangle(step, steps, cut_frac or 0.1, ratio or 32.0)
    return lambda step: multiplier(schedule or "constant", step, steps)


class ClassifierLoss:
    """``task_loss`` of a ``PooledClassifier`` on an AWD-LSTM, with AR and TAR (Merity et al. 2018) of each row's own tokens."""

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta

    def items(self, batch: Batch) -> int:
        """How many rows the batch has."""
        return len(batch["labels"])

    def __call__(self, model: nn.Module, batch: Batch) -> LossSum:
        seen: list[Tensor] = []

        def read(**inputs: Tensor) -> Tensor:
            out: tuple[Tensor, ...] = model(states=True, **inputs)
            seen.extend(out[1:])
            return out[0]

        loss = task_loss(read, batch)  # type: ignore[arg-type]
        hidden, raw, mask = at_least_float32(seen[0]), at_least_float32(seen[1]), seen[2]
        extra = self.alpha * row_means(hidden.square(), mask).sum()
        if raw.shape[1] > 1:
            steps = (raw[:, 1:] - raw[:, :-1]).square()
            extra = extra + self.beta * row_means(steps, mask[:, 1:] & mask[:, :-1]).sum()
        return LossSum(loss.total + extra, loss.items, loss.outputs)


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T, width) -> (B,): the mean of each row where ``mask`` (B, T) is true, 0 where it nowhere is.

    >>> row_means(torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([3.])
    """
    return (values.mean(-1) * mask).sum(1) / mask.sum(1).clamp(min=1)


# -- the phases ------------------------------------------------------------------------------------------------------
def ulmfit(start: Start, settings: UlmfitSettings) -> Tuned:
    """Fine-tune copies of the model (and of the backward one) and score them together on the test rows."""
    done: dict[str, Trained] = {}
    tuned: list[tuple[LanguageModel, nn.Module, int]] = []
    for prefix, lm in (("", start.lm), *(("backward-", other) for other in _backward(settings))):
        tuned.append(_Direction(replace(start, lm=lm), for_model(settings, lm), prefix).tune(done))

    def predict(
        examples: Sequence[Example], models: Sequence[tuple[LanguageModel, nn.Module, int]] = tuned
    ) -> list[Any]:
        each = [
            _outputs(model, encode_examples(lm, start.task, examples, length), start.batch, bool(start.task.labels))
            for lm, model, length in models
        ]
        mean = torch.stack(each).mean(0)
        labels = start.task.labels
        return [labels[i] for i in mean.argmax(-1).tolist()] if labels else mean[:, 0].tolist()

    def scored(models: Sequence[tuple[LanguageModel, nn.Module, int]]) -> list[Score]:
        gold = [e.label for e in start.task.test]
        return answer_scores(start.task, gold, predict(start.task.test, models))

    scores = scored(tuned)
    if len(tuned) > 1:
        for name, one in zip(("forward", "backward"), tuned, strict=True):
            scores += [replace(s, metric=f"{s.metric}@{name}", detail=None) for s in scored([one])]
    trunk = tuned[0][1].trunk
    assert isinstance(trunk, nn.Module)
    same_words = (
        tuned[0][0].tokenizer is start.lm.tokenizer
    )  # with other words its embedding has other rows than the model's
    return Tuned(scores=scores, phases=done, predict=predict, trunk=trunk if same_words else None)


@torch.inference_mode()
def _outputs(model: nn.Module, rows: Rows, batch: int, classes: bool) -> Tensor:
    """(rows, classes): probabilities of the classes, or numbers; in the rows' order, float64."""
    model.eval()
    device = next(model.parameters()).device
    answers: dict[int, Tensor] = {}
    for chosen, some in by_length(rows, batch):
        stop.check("scoring labelled rows")
        logits = model(**{k: v.to(device) for k, v in some.items() if k != "labels"}).double().cpu()
        answers.update(zip(chosen, logits.softmax(-1) if classes else logits, strict=True))
    return torch.stack([answers[i] for i in range(len(rows))])


class _Direction:
    """One model on its way through the phases; what is finished is kept in ``FOLDER/PREFIXdone``, and not trained again."""

    def __init__(self, start: Start, settings: UlmfitSettings, prefix: str) -> None:
        self.start, self.settings, self.prefix = start, settings, prefix
        start.method.activate(start.domain)
        lm = replace(start.lm, model=deepcopy(start.lm.model))
        rates = start.method.for_end_task(lm.model, start.domain)
        still = {name for name, p in lm.model.named_parameters() if not p.requires_grad}
        self.lm = in_words_of(lm, start.task, settings.lm)  # its embedding is another tensor then, of the same name
        named = dict(self.lm.model.named_parameters())
        self.frozen = {named[name] for name in still}
        self.rates = {named[name]: rate for name, rate in rates.items()}
        self.recurrent = anatomy(self.lm.model).model_type in RECURRENT
        self.finished: dict[str, Trained] = {}

    def tune(self, done: dict[str, Trained]) -> tuple[LanguageModel, nn.Module, int]:
        """Carry out all phases, each into ``done``; returns the model with its tokenizer, the classifier and the length of a row."""
        start, settings = self.start, self.settings
        torch.manual_seed(start.seed)
        if settings.start == "random":
            start_afresh(self.lm.model, self.lm.model)
        state = self._resume()
        if _tunes(settings):
            if state is None or "lm" in state["model"]:
                self._take(self.lm.model, state, "lm")
            if "lm" not in self.finished:
                self._tune_lm()
            done[f"{self.prefix}lm"] = self.finished["lm"]
        torch.manual_seed(start.seed)  # the head's start does not depend on what ran before
        model = self._classifier()
        self._take(model, state, "classifier")
        self._tune_classifier(model, done)
        return self.lm, model, settings.max_length or WHOLE

    def _tune_lm(self) -> None:
        """The language model on the task's text; where a fine-tuning of the same study did the same, what that left."""
        settings, model = self.settings, self.lm.model
        alike = None if self.start.shared is None else self.start.shared / f"lm-{self._lm_digest()}"
        if alike is not None and checkpoint.whole(alike):
            try:
                self._take(model, self._finished(alike, {"lm": alike.name}), "lm")
            except checkpoint.Damaged as fault:
                say(f"{fault} The language model is tuned again.")
                shutil.rmtree(alike)
            else:
                self._keep(model, "lm")
                return
        if self.recurrent:
            # the paper gives one list for both steps, the scripts another to the language model
            set_rates(model, LM_RATES if settings.preset == "scripts" else CLASSIFIER_RATES, settings.dropout)
        training = lm_training(
            self.lm, self.start.task, settings.lm, self.start.seed, settings.micro_batch, "ulmfit.lm"
        )
        groups = depth_groups(model, tied="head")
        shares = shares_of(settings.lm.discriminative or 1.0, None, groups, "lm.discriminative")
        self._phase("lm", model, training, settings.lm, shares, None, settings.lm.cut_frac, 0)
        if alike is not None:  # before it is kept: a kill in between costs the others nothing
            partial = alike.with_name(f"{alike.name}.{uuid4().hex}")
            checkpoint.save(partial, self._left(model, "lm"), {"lm": alike.name})
            try:
                partial.rename(alike)
            except OSError:  # another process did the same meanwhile, and was first
                shutil.rmtree(partial)
        self._keep(model, "lm")

    def _lm_digest(self) -> str:
        """Of all that the tuned language model depends on."""
        settings, model = self.settings, self.lm.model
        named = {id(p): name for name, p in model.named_parameters()}
        facts = [
            weights_identity(model), tokenizer_identity(self.lm.tokenizer), str(anatomy(model).base.config.to_json_string()),
            hashlib.sha256(text_ids(self.lm, self.start.task, settings.lm.max_length).tobytes()).hexdigest(), asdict(settings.lm),
            settings.preset, settings.dropout,
            settings.micro_batch, settings.optimizer, settings.precision, self.start.seed, sorted(named[id(p)] for p in self.frozen),
            sorted((named[id(p)], rate) for p, rate in self.rates.items()),
        ]  # fmt: skip
        return sha256(facts)[:32]

    def _classifier(self) -> nn.Module:
        settings, labels = self.settings, max(len(self.start.task.labels), 1)
        if self.recurrent:
            set_rates(self.lm.model, CLASSIFIER_RATES, settings.dropout)
        if settings.pooling != "concat":
            return Classifier(self.lm.model, labels, settings.pooling, settings.head_dropout[1])
        return PooledClassifier(self.lm.model, labels, hidden=settings.hidden, dropouts=settings.head_dropout, chunk=settings.chunk,
                                pooled=settings.pooled)  # fmt: skip

    def _tune_classifier(self, model: nn.Module, done: dict[str, Trained]) -> None:
        settings, task = self.settings, self.start.task
        assert settings.batch is not None
        assert settings.lr is not None
        groups = depth_groups(model)
        body = None if settings.body_lr is None else settings.body_lr / settings.lr
        shares = shares_of(settings.discriminative or 1.0, body, groups, "discriminative")
        phases = unfreezing_phases(settings.unfreeze, len(groups), settings.unfreeze_most)
        steps = phase_steps(settings, len(task.train), len(phases), "ulmfit")
        rows = _rows(self.lm, task, settings)
        regularised = self.recurrent and settings.pooling == "concat" and (settings.alpha or settings.beta)
        loss = ClassifierLoss(settings.alpha or 0.0, settings.beta or 0.0) if regularised else task_loss
        for i, (trains, n) in enumerate(zip(phases, steps, strict=True)):
            name, last = f"classifier-{i + 1}", i == len(phases) - 1
            if name not in self.finished:
                seed = self.start.seed + 7919 * (i + 1)  # another order of the rows in each phase
                batches = RowBatches(rows, settings.batch, 1.0, seed, n, settings.micro_batch)
                weights = {w for g in trains for w in groups[g].weights}
                cut = settings.cut_frac
                if cut is None and settings.preset == "scripts":
                    cut = SCRIPTS_LAST_CUT if last else SCRIPTS_CUT
                training = LMTraining(batches=batches, loss=loss)
                self._phase(name, model, training, settings, shares, weights, cut, i + 1)
                self._keep(model, name)
            done[f"{self.prefix}{name}"] = self.finished[name]

    def _phase(
        self, name: str, model: nn.Module, training: LMTraining, settings: LMStage | UlmfitSettings, shares: dict[str, float],
        trains: set[str] | None, cut_frac: float | None, number: int,
    ) -> None:  # fmt: skip
        start, whole, batches = self.start, self.settings, training.batches
        heights = _heights(settings.schedule, len(batches), cut_frac, settings.ratio)
        named = dict(model.named_parameters())
        chosen = {n for n, p in named.items() if p not in self.frozen and (trains is None or n in trains)}
        rates = {n: shares[n] * self.rates.get(p, 1.0) for n, p in named.items()}
        optimizer = self._optimizer(settings.weight_decay)
        assert settings.lr is not None
        loop = LoopSettings(
            batch=settings.batch or 1, lr=settings.lr, schedule="constant", warmup=0.0, clip=settings.clip, optimizer=optimizer,
            precision=whole.precision, checkpoint_every=whole.checkpoint_every, steps=len(batches), micro_batch=None,
        )  # fmt: skip
        label = start.name or f"end task {start.task.name}"
        trained = phase(
            model, batches, training.loss, lambda m: make_optimizer(optimizer, m, settings.lr or 0.0, len(batches)), loop, chosen, rates,
            self._folder(name), name=f"{label} · {self.prefix}{name}", seed=start.seed + number,
            identity={**start.identity, "phase": f"{self.prefix}{name}"},
            carry=training.carry, rate_scale=lambda step: heights(step) * training.scale(step),
        )  # fmt: skip
        self.finished[name] = trained

    def _optimizer(self, weight_decay: float | None) -> dict[str, Any]:
        """The optimizer's options, with the decay of the step."""
        return {**self.settings.optimizer, "weight_decay": weight_decay or 0.0}

    # -- what is finished ----------------------------------------------------------------------------------------------
    def _folder(self, name: str) -> Path | None:
        return None if self.start.folder is None else self.start.folder / f"{self.prefix}{name}"

    def _identity(self) -> dict[str, str]:
        return {**self.start.identity, "phase": f"{self.prefix}done"}

    def _keep(self, model: nn.Module, name: str) -> None:
        """One checkpoint of what all finished phases left, in place of the steps of the last one."""
        folder = self._folder("done")
        if folder is None:
            return
        checkpoint.save(folder, self._left(model, name), self._identity())
        steps = self._folder(name)
        assert steps is not None
        checkpoint.prune(steps, keep=0)

    def _left(self, model: nn.Module, name: str) -> dict[str, Any]:
        """What the phases up to ``name`` left."""
        kind = "lm" if name == "lm" else "classifier"
        weights = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
        return {
            "model": {kind: weights},
            "phases": {done: asdict(trained) for done, trained in self.finished.items()},
        }

    def _resume(self) -> dict[str, Any] | None:
        folder = self._folder("done")
        if folder is None or not checkpoint.whole(folder):
            return None
        try:
            return self._finished(folder, self._identity())
        except checkpoint.Damaged as fault:
            say(f"{fault} The phases that it held are trained again.")
            self.finished.clear()
            shutil.rmtree(folder)
            return None

    def _finished(self, folder: Path, identity: dict[str, str]) -> dict[str, Any]:
        """Read what finished phases left, and note which they are."""
        groups = checkpoint.load(folder, identity).groups
        with checkpoint.forged(folder):
            for name, kept in groups["phases"].items():
                curve, observed = ([tuple(point) for point in kept.pop(key)] for key in ("curve", "observed"))
                self.finished[name] = Trained(**kept, curve=curve, observed=observed)
        return groups

    def _take(self, model: nn.Module, state: dict[str, Any] | None, kind: str) -> None:
        """Put the weights of finished phases into the model that they were of."""
        if state is None or kind not in state["model"]:
            return
        own = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
        restore(own, state["model"][kind], str(self._folder("done")))


__all__ = ["UlmfitSettings", "check", "reads", "resolve", "ulmfit"]
