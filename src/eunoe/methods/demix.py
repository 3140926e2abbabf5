"""DEMix: an expert for each domain on one frozen model, started from the nearest earlier expert; without a domain the experts are mixed.

Paper: Gururangan et al. 2022, "DEMix Layers: Disentangling Domains for Modular Language Modeling", https://arxiv.org/abs/2108.05036; as
a baseline of Ke et al. 2022 (CPT, https://arxiv.org/abs/2210.05549). As in the CPT authors' ContinualLM an expert is a set of adapters
(``plugins/bottleneck.py``) on the frozen theta_0; the paper's own experts are whole feed-forward layers, T of them in each layer.

Start. Before domain t its expert a_t becomes a copy of the earlier expert of least perplexity on a sample of the new text,

    a_t <- a_s,  s = argmin_{s < t} L_lm(theta_0, a_s; sample of D_t),

the first one starts fresh. Then L_lm(theta_0, a_t; D_t) is minimised over a_t alone. The sample is what the stage's first steps read,
``sample`` blocks of it (ContinualLM: 10,000), the same and under the same masks for every expert. ContinualLM computes these perplexities
and then stops with a not-implemented error; here the start is done.

Use. With a domain, its expert reads the text. Without one, the experts' predictions are mixed by how likely each is to be the text's
(the paper's equation of mixing at inference, uniform prior): for the targets y_1 ... y_n of a block, in the order of the text, D experts,

    p(y_i | y_<i, x) = sum_d w_{i,d} p_d(y_i | x),   w_{i,d} = softmax_d( sum_{j < i} log p_d(y_j | x) ).

A causal LM's targets are its next tokens, so that is the paper's formula. A masked LM sees the text around its masked places and is
asked for these from left to right, each answer telling the weights of the next: the product over i is the same mixture
(1/D) sum_d prod_i p_d(y_i | x) of the experts' own products. That reading for masked LMs is ours. Each block begins with equal weights
(the paper also keeps a running average over blocks).

Hidden states without a domain (``activate(None)``) are those of the pretrained model: states of several experts have no mean that a head
was trained on. In an end task the expert of its domain and the classifier train; ``backbone: trained`` trains theta_0 too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eunoe import stop
from eunoe.data.buffer import take_rows, target_rows
from eunoe.data.collate import Batch
from eunoe.errors import EunoeError
from eunoe.methods.base import Method, Stage
from eunoe.methods.own import Own, Plug, Tensors
from eunoe.plugins.bottleneck import AdapterSettings, attach
from eunoe.recipe import Count


@dataclass(kw_only=True)
class DemixSettings(AdapterSettings):
    """The experts' settings, and the sample that chooses where one starts."""

    sample: Count = 10_000
    """Blocks of a new domain that the earlier experts are scored on (ContinualLM: 10,000); at most what the stage will read."""


class Demix(Own):
    """An expert per domain on a frozen model, each started from the nearest earlier one."""

    starts_from = "previous"
    settings: DemixSettings

    def __init__(self, model: nn.Module, settings: DemixSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.losses: dict[str, dict[str, float]] = {}
        """Domain -> the LM loss of each earlier expert on its sample, nats a target; the least started it."""

    def attach(self) -> Sequence[Plug]:
        return attach(self.model, self.settings)

    def start(self, stage: Stage) -> Tensors:
        if not self.learnt:
            return self.fresh
        losses = {domain: self._loss(stage, domain) for domain in self.learnt}
        self.losses[stage.name] = losses
        return self.learnt[min(losses, key=lambda domain: losses[domain])]

    @torch.no_grad()
    def _loss(self, stage: Stage, expert: str) -> float:
        """Mean LM loss of an expert on the sample of ``stage``, over all processes, without dropout."""
        self.activate(expert)
        self.model.eval()
        rows, sums = 0, torch.zeros(2, dtype=torch.float64)
        share = -(-self.settings.sample // (dist.get_world_size() if dist.is_initialized() else 1))
        for step in range(len(stage.batches)):
            for batch in stage.batches[step]:
                stop.check(f"choosing the expert that {stage.name} starts from")
                part = take_rows(batch, range(min(len(batch["input_ids"]), share - rows)))
                loss = stage.loss(part)
                sums += torch.tensor([float(loss.total), loss.items], dtype=torch.float64)
                rows += len(part["input_ids"])
                if rows == share:
                    break
            if rows == share:
                break
        if dist.is_initialized():
            device = next(self.model.parameters()).device
            shared = sums.to(device)
            dist.all_reduce(shared)
            sums = shared.cpu()
        return float(sums[0] / sums[1])

    # -- state -------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """``experts``: of every learnt domain but that of ``weights``; ``losses``: what chose where each started."""
        experts = {domain: dict(own) for domain, own in self.learnt.items() if domain != self.newest_name}
        return {
            "experts": experts,
            "losses": {d: dict(losses) for d, losses in self.losses.items() if d in self.learnt},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"experts", "losses"}:
            raise EunoeError(f"demix: the saved state holds {', '.join(sorted(map(str, state))[:5]) or 'nothing'}; it belongs to another "
                             "method.")  # fmt: skip
        self.learnt = {
            domain: self.fitting(own, f"the saved expert of {domain}") for domain, own in state["experts"].items()
        }
        self.losses = {domain: dict(losses) for domain, losses in state["losses"].items()}

    # -- use ---------------------------------------------------------------------------------------------------
    def log_probs(self, batch: Batch, domain: str | None) -> Tensor:
        """As the expert of ``domain`` reads; None: the mixture of all experts, weighed target by target. (n, vocabulary), float32.

        The mixture reads the batch twice under each expert, so that its memory does not grow with their number.
        """
        if domain is not None or not self.learnt:
            return super().log_probs(batch, domain)
        labels, experts = batch["labels"][:, None], list(self.learnt)
        own = [Method.log_probs(self, batch, expert).gather(1, labels)[:, 0] for expert in experts]
        weights = log_posterior(torch.stack(own, 1), target_rows(batch))
        mixed: Tensor | None = None
        for i, expert in enumerate(experts):
            one = Method.log_probs(self, batch, expert) + weights[:, i : i + 1].to(own[0])
            mixed = one if mixed is None else torch.logaddexp(mixed, one)
        self.activate(None)
        assert mixed is not None
        return mixed

    def notes(self) -> dict[str, Any]:
        return {"general": "general text is read by the mixture of all experts"}

    def facts(self) -> tuple[dict[str, Any], list[str]]:
        """``nearest.json``: of each domain the LM loss of the earlier experts on its sample; the least started its expert."""
        return ({"nearest.json": self.losses} if self.losses else {}), []


def log_posterior(log_likelihoods: Tensor, rows: Tensor) -> Tensor:
    """log w (n, D), float64: of each target how likely each expert is, by the targets before it in its row, with a uniform prior.

    ``log_likelihoods`` (n, D): log p_d(y_i); ``rows`` (n,): whose a target is, in ascending order, targets in the order of the text.

    >>> log_posterior(torch.tensor([[0.0, -1.0], [0.0, 0.0]]), torch.tensor([0, 0])).exp()[0].tolist()
    [0.5, 0.5]
    """
    values = log_likelihoods.double()
    before = values.cumsum(0) - values
    first = torch.searchsorted(rows.contiguous(), rows.contiguous())  # the row's first target
    return torch.log_softmax(before - before[first], 1)


__all__ = ["Demix", "DemixSettings", "log_posterior"]
