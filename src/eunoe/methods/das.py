"""DAS, continual DA-pre-training of LMs with soft-masking: all weights learn, the more slowly the more earlier knowledge needs them.

Paper: Ke, Shao, Lin, Konishi, Kim, Liu 2023, "Continual Pre-training of Language Models" (ICLR 2023,
https://arxiv.org/abs/2302.03241); code https://github.com/UIC-Liu-Lab/ContinualLM. No domain needs to be known when text is read.

A **unit** is an attention head, a feed-forward (intermediate) unit or a feed-forward output; ``plugins/gates.py`` gives each a
virtual gate g = 1 and says which weights make the unit.

1. **Importance** of a layer's units of one kind: ``I = |tanh(norm(mean dL/dg))|``, a number in [0, 1) for each; norm: zero mean,
   unit standard deviation over the units. L is the LM loss on the domain just learnt (in ``end``), and once, before the first
   domain, a proxy for general knowledge: ``KL(p1 || p2)`` between the token distributions of two dropout passes at the same
   positions: a unit that makes the model less sure of itself matters to what it knows.
2. **Accumulate**: ``I_pre = max(I_pre, I)``, element by element, over general knowledge and all domains learnt.
3. **Soft mask**: ``grad <- (1 - I_pre) grad`` for the weights that make a unit; the forward pass knows nothing of it.
4. **Contrast** (``info_nce``), in each step, over the rows of a micro-batch: ``-log( exp(cos(z1_n, z2_n) / tau) /
   sum_j [exp(cos(z1_n, z2_j) / tau) + exp(cos(z1_n, z3_j) / tau)] )``, tau = 0.05. z: the mean over a text's tokens of the last
   hidden states (B, width); z1 and z2 are two dropout passes of the whole network, z3 one with each unit multiplied by its
   I_pre, which is what the network knew before. It pulls new knowledge away from old. L = LM loss + ``contrast`` * this.

What we do differently, and why:

- The release multiplies the columns of query, key and value by the heads' mask; a head is made by their rows. And it pairs a
  doubled batch's neighbours, so that its positives are different texts; here a text is paired with itself.
- z1 is the LM loss' own pass, z2 and z3 read the same input, so for a masked LM the text is masked. The release makes three more
  passes of unmasked text; this spares one of them.
- The importance passes take the LM loss' batches (up to ``samples`` rows), and the KL is over the vocabulary at target
  positions; the release takes it over the last hidden states, along the axis of tokens.
- A model without dropout has no two different passes; then the gates drop units, with the dropout rate ``noise``.
- The release averages over processes what each normalised over its own part; here sums are joined first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe import stop
from eunoe.data.collate import Batch
from eunoe.errors import EunoeError
from eunoe.methods.base import Method, Outputs, Stage, bytes_of
from eunoe.models.anatomy import anatomy
from eunoe.models.cross_entropy import at_least_float32
from eunoe.models.dropout import CheapDropout
from eunoe.models.heads import mean_pool
from eunoe.plugins.gates import KINDS, Gates, spread


@dataclass(kw_only=True)
class DasSettings:
    """The published settings."""

    contrast: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the contrastive loss; 0 leaves its two passes out."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """tau of the contrastive loss."""
    samples: Annotated[int, Field(ge=1)] = 10_000
    """Rows of the domain's text, at most, that importance is measured on."""
    noise: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Dropout rate of units in the second passes of a model that has no dropout of its own (ours)."""


def importance(gradients: Tensor) -> Tensor:
    """``|tanh((g - mean) / std)|`` over the units of one kind in one layer, (units,) -> (units,).

    0 where the gradients do not differ, which says nothing of any unit; and for a single unit.

    >>> importance(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.7616, 0.0000, 0.7616])
    """
    std = gradients.std() if gradients.numel() > 1 else gradients.new_zeros(())
    if std <= 1e-12:  # the rounding of two equal passes
        return torch.zeros_like(gradients)
    return torch.tanh((gradients - gradients.mean()) / std).abs()


def info_nce(z1: Tensor, z2: Tensor, z3: Tensor, temperature: float) -> Tensor:
    """The summed contrastive loss of B texts; z1 and z2 (B, width) are two views of each, z3 (B, width) more negatives.

    ``-sum_n log( e(z1_n, z2_n) / sum_j (e(z1_n, z2_j) + e(z1_n, z3_j)) )``, ``e(a, b) = exp(cos(a, b) / temperature)``.
    """
    others = F.normalize(torch.cat([z2, z3]), dim=-1)
    scores = F.normalize(z1, dim=-1) @ others.T / temperature  # (B, 2 B)
    return F.cross_entropy(scores, torch.arange(len(z1), device=z1.device), reduction="sum")


class Das(Method):
    """All weights learn; gradients of those that make important units are damped; see the module. It forgets, but less.

    Raises ``EunoeError`` for a model family without anatomy.

    >>> Das(model, DasSettings(samples=2_000), ["law", "sport"])  # doctest: +SKIP
    """

    trains = "all"
    contrasts = True
    returns = True

    def __init__(self, model: nn.Module, settings: DasSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        for p in model.parameters():
            p.requires_grad_(True)
        self.parts = anatomy(model)
        drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        self.gates = Gates(self.parts, 0.0 if drops else settings.noise)
        self.importance: dict[str, Tensor] = {}
        """By ``LAYER.KIND`` (units,): of general knowledge and all domains learnt; empty before the first stage."""
        self.factors: list[tuple[nn.Parameter, Tensor]] = []

    # -- hooks -------------------------------------------------------------------------------------------------
    def begin(self, stage: Stage) -> None:
        self.stage = stage
        if not self.importance:
            self.model.train()
            with self.gates.noise():
                self._add(self._measure(stage, _two_passes(stage), "measuring general knowledge"))
        device = next(self.model.parameters()).device
        self.importance = {name: value.to(device) for name, value in self.importance.items()}
        self.factors = []
        for layer in self.parts.layers:
            own = {kind: self.importance[f"{layer.name}.{kind}"] for kind in KINDS}
            self.factors += [(weight, 1 - value) for weight, value in spread(self.parts, layer, own)]

    def extra_items(self, batch: Batch) -> int:
        return len(batch["input_ids"]) if self.settings.contrast else 0

    def extra_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        """``contrast`` times the contrastive loss, summed over the rows of the micro-batch."""
        with self.gates.noise():
            second, mask = self.stage.forward(batch)
        with self.gates.at(self.importance):
            before, _ = self.stage.forward(batch)
        z1, z2, z3 = (mean_pool(hidden, mask) for hidden in (outputs.states, second, before))
        weighted: Tensor = self.settings.contrast * info_nce(z1, z2, z3, self.settings.temperature)
        return weighted

    def on_gradients(self) -> None:
        for weight, factor in self.factors:
            if weight.grad is not None:
                weight.grad.mul_(factor.to(weight.grad.dtype))

    def end(self, stage: Stage) -> None:
        self.model.eval()
        self._add(self._measure(stage, lambda batch: _total(stage, batch), f"measuring what {stage.name} needs"))

    # -- importance --------------------------------------------------------------------------------------------
    def _measure(self, stage: Stage, loss: Callable[[Batch], Tensor], doing: str) -> dict[str, Tensor]:
        """The importance of all units by a summed ``loss``, over at most ``samples`` rows of all processes."""
        ones = self.gates.ones(next(self.model.parameters()))
        world = dist.get_world_size() if dist.is_initialized() else 1
        sums, rows = [torch.zeros_like(one) for one in ones.values()], 0
        with self.gates.at(ones), CheapDropout():
            for batch in (batch for step in range(len(stage.batches)) for batch in stage.batches[step]):
                if rows * world >= self.settings.samples:
                    break
                stop.check(doing)
                gradients = torch.autograd.grad(loss(batch), list(ones.values()))
                sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
                rows += len(batch["input_ids"])
        if world > 1:
            for total in sums:
                dist.all_reduce(total)
        return {name: importance(total / (rows * world)) for name, total in zip(ones, sums, strict=True)}

    def _add(self, measured: Mapping[str, Tensor]) -> None:
        self.importance = {
            name: torch.maximum(self.importance[name].to(value.device), value) if self.importance else value
            for name, value in measured.items()
        }

    # -- state and facts ---------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        return dict(self.importance)

    def sizes(self) -> dict[str, int]:
        return {"importance of units": bytes_of(dict(self.importance))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        shapes = {name: (units,) for name, units in self.gates.units.items()}
        if state and shapes != {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}:
            raise EunoeError(
                f"das: the saved state holds {', '.join(sorted(map(str, state))[:3])}, this model needs the importance of "
                f"{', '.join(list(shapes)[:3])} and so on. It belongs to another method or another model."
            )
        self.importance = {name: value.clone() for name, value in state.items()}

    def clashes(self, other: Method) -> str | None:
        return None if other.forgets and not other.needs_domain else "das trains weights that the other keeps still"


def _total(stage: Stage, batch: Batch) -> Tensor:
    return stage.loss(batch).total


def _two_passes(stage: Stage) -> Callable[[Batch], Tensor]:
    def loss(batch: Batch) -> Tensor:
        """The summed KL between the token distributions of two passes."""
        one, two = (torch.log_softmax(at_least_float32(stage.loss(batch).outputs.logits), -1) for _ in range(2))
        return F.kl_div(two, one, reduction="sum", log_target=True)

    return loss


__all__ = ["Das", "DasSettings", "importance", "info_nce"]
