"""The loss that an AWD-LSTM trains on: cross-entropy of the next word, AR and TAR, over a state that is carried along.

    loss = mean cross-entropy + alpha mean(dropped h_t ^2) + beta mean((h_(t+1) - h_t)^2)

on the last layer: AR with its output dropout, TAR without (Merity et al. 2018, arXiv 1708.02182, section 4.6; alpha 2 and beta 1
in their program). The vocabulary product and the cross-entropy are one function (``linear_cross_entropy``), which turns logits into
their gradient in place, and multiplies by ``models.products``.

A sampled softmax (Jean et al. 2015, arXiv 1412.2007) compares each target with the same ``sampled`` words of a batch instead of all. They
are drawn without replacement, log-uniformly over rows, which takes a vocabulary sorted by frequency as ``AwdLstmTokenizer.build`` and
fastai make it; each logit is corrected by the log of the word's chance to be in the sample. It biases the loss that training
shows, so scores are always of the whole softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.models.awd.model import AwdState
from eunoe.models.cross_entropy import at_least_float32
from eunoe.models.heads import LossSum, Outputs
from eunoe.models.products import product

_AT_ONCE = 1 << 18
"""Logits that the cross-entropy has in float32 at a time, which a core's cache holds."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, shift: Tensor | None = None,
    others: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The summed cross-entropy (nats, float32 or more) of ``hidden @ weight.T + bias`` (n, words) at ``labels`` (n,).

    ``hidden`` (n, width), ``weight`` (words, width), ``bias`` (words,). ``shift`` (words,) is added to the logits; in rows that
    do not have the word as their label ``others`` (words,) is added instead: -inf there takes it out. Neither gets a
    gradient. A second derivative is not defined.
    """
    half = (
        torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
    )
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, shift, others, half)  # type: ignore[no-untyped-call]
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """The logits' gradient is made where the logits lie, so that memory holds one (n, words) matrix and not four."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, shift: Tensor | None,
        others: Tensor | None, half: torch.dtype,
    ) -> Tensor:  # fmt: skip
        logits = product(hidden.to(half), weight.to(half))
        total = torch.zeros((), dtype=torch.promote_types(half, torch.float32), device=hidden.device)
        rows = max(1, _AT_ONCE // max(1, logits.shape[1]))
        for start in range(0, len(logits), rows):
            part = logits[start : start + rows]
            wide = part if part.dtype == total.dtype else part.to(total.dtype)
            if bias is not None:
                wide = wide.add_(bias.to(total.dtype))
            at = labels[start : start + rows, None]
            chosen = wide.gather(1, at)
            if shift is not None and others is not None:
                chosen = chosen + shift[at]
                wide = wide.add_(others).scatter_(1, at, chosen)
            norms = wide.logsumexp(1, keepdim=True)
            total += (norms - chosen).sum()
            wide.sub_(norms).exp_()
            wide.scatter_add_(1, at, wide.new_full(at.shape, -1.0))
            if wide is not part:
                part.copy_(wide)
        ctx.save_for_backward(hidden, weight, logits)
        ctx.biased = bias is not None
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, dlogits = ctx.saved_tensors
        grad, half = grads[0], dlogits.dtype
        needs = ctx.needs_input_grad
        dhidden = dweight = dbias = None
        if needs[0]:
            dhidden = product(dlogits, weight.to(half).t().contiguous()).to(hidden.dtype) * grad
        if needs[1]:
            dweight = product(dlogits.t().contiguous(), (hidden * grad).to(half).t().contiguous()).to(weight.dtype)
        if ctx.biased and needs[2]:
            dbias = dlogits.sum(0, dtype=torch.promote_types(half, torch.float32)) * grad
        return dhidden, dweight, dbias, None, None, None, None


class Carry:
    """What a training remembers from batch to batch: the state that was read, and whatever ``parts`` remember beside it."""

    def __init__(self, parts: Mapping[str, Stateful] | None = None) -> None:
        self.state: AwdState | None = None
        self.parts = dict(parts or {})

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        own = {"state": None if self.state is None else self.state.state_dict()}
        return own | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self.state = None if state["state"] is None else AwdState.from_state_dict(state["state"])
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class AwdLoss:
    """The loss of a batch of ``data.stream.StreamBatches`` (or of any ``input_ids`` and ``labels`` (B, T)) on an ``AwdLstmForCausalLM``.

    ``carry``: the state is carried in it from batch to batch, and forgotten where a batch's ``start`` is true; None: each batch is
    read from nothing. ``alpha``, ``beta``: of AR and TAR. ``sampled``: words that each target is compared with; None: all.
    Raises ``EunoeError`` for a sample that is no smaller than the vocabulary.
    """

    def __init__(
        self, carry: Carry | None = None, alpha: float = 2.0, beta: float = 1.0, sampled: int | None = None
    ) -> None:
        self.carry, self.alpha, self.beta, self.sampled = carry, alpha, beta, sampled

    def items(self, batch: Mapping[str, Tensor]) -> int:
        """How many words are predicted."""
        return batch["labels"].numel()

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> LossSum:
        state = None if self.carry is None or bool(batch.get("start", False)) else self.carry.state
        read = model.transformer(input_ids=batch["input_ids"], past_key_values=state, use_cache=True, return_dict=True)
        if self.carry is not None:
            self.carry.state = read.past_key_values.detach()
        hidden, raw = at_least_float32(read.last_hidden_state), at_least_float32(read.raw)
        labels, n = batch["labels"].flatten(), self.items(batch)
        total = self._cross_entropy(hidden.flatten(0, 1), model.lm_head, labels)
        if self.alpha:
            total = total + n * self.alpha * hidden.square().mean()
        if self.beta and raw.shape[1] > 1:
            total = total + n * self.beta * (raw[:, 1:] - raw[:, :-1]).square().mean()
        return LossSum(total, n, Outputs(hidden.new_empty(0, 0), hidden.flatten(0, 1), hidden))

    def _cross_entropy(self, hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
        if self.sampled is None:
            return linear_cross_entropy(hidden, head.weight, head.bias, labels)
        words = head.weight.shape[0]
        refuse_sample(self.sampled, words)
        sample, chances = zipf_sample(words, self.sampled, hidden.device)
        sampled = torch.zeros(words, dtype=torch.bool, device=hidden.device)
        sampled[sample] = True
        rows = torch.cat([sample, labels]).unique()  # type: ignore[no-untyped-call]  # sorted, so that a label's place can be looked up
        place = torch.searchsorted(rows, labels)
        shift = -chances[rows].log()
        # a word that is here as the target of one position alone was not drawn for the others
        others = shift.masked_fill(~sampled[rows], -torch.inf)
        bias = head.bias.index_select(0, rows) if head.bias is not None else None
        return linear_cross_entropy(hidden, head.weight.index_select(0, rows), bias, place, shift, others)


def refuse_sample(sampled: int, words: int) -> None:
    """Raise ``EunoeError`` for a sample that is no smaller than the vocabulary."""
    if sampled >= words:
        raise EunoeError(
            f"sampled is {sampled:,}, but the vocabulary has {words:,} words. Sample fewer, or leave it out."
        )


def zipf_sample(words: int, n: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """``n`` different rows out of ``words``, log-uniformly (row r with chance log((r + 2) / (r + 1)) / log(words + 1) in a draw),
    and of every row its chance to be among them.

    Without replacement by Gumbel's trick: the n largest of log chance plus noise. The chance is 1 - exp(-t p) with t such that
    the chances add up to n (Rosen's approximation for successive sampling).
    """
    ranks = torch.arange(words, device=device, dtype=torch.float64)
    p = ((ranks + 2) / (ranks + 1)).log() / torch.log(torch.tensor(words + 1.0, dtype=torch.float64))
    gumbel = -(-torch.rand(words, device=device, dtype=torch.float64).clamp(1e-12, 1 - 1e-12).log()).log()
    sample = (p.log() + gumbel).topk(n).indices
    return sample, _chances(words, n, p)


_kept: dict[tuple[int, int], Tensor] = {}


def _chances(words: int, n: int, p: Tensor) -> Tensor:
    if (words, n) not in _kept:
        low, high = 0.0, 1.0
        while float((1 - (-high * p).exp()).sum()) < n:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if float((1 - (-middle * p).exp()).sum()) < n else (low, middle)
        _kept[words, n] = (1 - (-high * p).exp()).float().cpu()
    return _kept[words, n].to(p.device)


__all__ = ["AwdLoss", "Carry", "linear_cross_entropy", "refuse_sample", "zipf_sample"]
