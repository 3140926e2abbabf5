"""Heads on a pretrained model: the LM head at target positions only, a low-rank change to train one cheaply, a classifier.

The vocabulary product is more than half of a small model's arithmetic, and a masked LM has targets at 15 % of the tokens.
One forward hook on the base model hands only the target positions to whatever head the family has; it works for
every Hugging Face masked or causal LM and changes no number (each position passes the head by itself).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.data.collate import NO_TARGET
from eunoe.errors import EunoeError
from eunoe.models.anatomy import anatomy
from eunoe.models.cross_entropy import at_least_float32, cross_entropy
from eunoe.optim.names import plain_name, plain_names


class Outputs(NamedTuple):
    """What a forward pass leaves at the n target positions of a batch."""

    logits: Tensor
    """(n, vocabulary)"""
    hidden: Tensor
    """(n, width): the last hidden states, below the LM head."""
    states: Tensor
    """(B, T, width): the last hidden states at all positions."""


class LossSum(NamedTuple):
    """A loss, not yet divided: the sum over ``items`` items, and the outputs it was computed from."""

    total: Tensor
    items: int
    outputs: Any


@contextmanager
def only_positions(model: nn.Module, positions: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within the block the LM head of ``model`` sees only ``positions`` (n,), indices into the flattened (B * T) tokens.

    Its logits then have shape (1, n, vocabulary); the hidden states (n, width) that it saw are appended to the list, each with
    those of all positions (B, T, width).
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def choose(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0]
        chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions.to(hidden.device))
        seen.append((chosen, hidden))
        if isinstance(output, tuple):
            return (chosen.unsqueeze(0), *output[1:])
        output.last_hidden_state = chosen.unsqueeze(0)
        return output

    handle = anatomy(model).base.register_forward_hook(choose)
    try:
        yield seen
    finally:
        handle.remove()


def target_outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Logits and hidden states at the n target positions of a batch made by ``data.collate``."""
    with only_positions(getattr(model, "module", model), batch["positions"]) as seen:
        logits: Tensor = model(input_ids=batch["input_ids"]).logits
    return Outputs(logits.flatten(0, 1), *map(at_least_float32, seen[-1]))


def target_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (n, vocabulary) at the n target positions of a batch made by ``data.collate``."""
    return target_outputs(model, batch).logits


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, T, width) and (B, T) -> the mean of each row's real positions (B, width), float32 or more."""
    real = mask[..., None].to(hidden.device)
    return (at_least_float32(hidden) * real).sum(1) / real.sum(1)


class LMLoss:
    """The LM loss of a batch: summed cross-entropy (nats) over its target positions. ``lm_loss`` is the one instance."""

    def items(self, batch: Mapping[str, Tensor]) -> int:
        """How many target positions the batch has; those labelled ``NO_TARGET`` pass the head and count for nothing."""
        return int((batch["labels"] != NO_TARGET).sum())

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> LossSum:
        outputs = target_outputs(model, batch)
        return LossSum(cross_entropy(outputs.logits, batch["labels"]), self.items(batch), outputs)


lm_loss = LMLoss()


class LowRank(nn.Module):
    """A linear layer with a trained low-rank change beside it: y = W x + b + up(down(x)) (LoRA, arXiv 2106.09685, scale 1).

    ``up`` starts at zero, so the layer starts as it was. ``apply_patch`` merges the change into the weight.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.normal_(self.down, std=base.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + F.linear(F.linear(x, self.down), self.up)
        return out


def start_at_identity(model: nn.Module, new: list[str]) -> None:
    """Set freshly made head weights: square matrices to the identity, so the head starts as a plain look-up of tokens."""
    named = dict(model.named_parameters())
    for name in new:
        p = named.get(name)
        if p is not None and p.dim() == 2 and p.shape[0] == p.shape[1]:
            nn.init.eye_(p)


def add_low_rank(model: nn.Module, rank: int) -> None:
    """Put a ``LowRank`` beside every linear layer of the encoder (not of the head), in place."""
    base = anatomy(model).base
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, LowRank):
                setattr(parent, name, LowRank(child, rank))


Pooling = Literal["first", "last", "mean"]


class Classifier(nn.Module):
    """A pretrained trunk with a fresh classifier on one token's state, as CPT's end tasks have it (papers: arXiv 2210.05549).

    state -> dropout -> dense -> tanh -> dropout -> linear. Encoders read the first token's state; decoders, whose
    first token has seen nothing, read the last real one; sentence encoders were trained for the mean of all real ones.
    ``logits`` (B, labels); one label means regression.
    """

    base_model_prefix = "trunk"
    """What transformers' models have: it tells ``anchored_groups`` that the classifier is new and has no anchor."""

    def __init__(self, lm: nn.Module, labels: int, pooling: Pooling, dropout: float = 0.1) -> None:
        super().__init__()
        parts = anatomy(lm)
        width = parts.width
        self.trunk = parts.base
        self.config = parts.base.config
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, labels)
        std = float(getattr(self.config, "initializer_range", 0.02) or 0.02)
        for layer in (self.dense, self.out):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, **batch: Tensor) -> Tensor:
        hidden = self.trunk(**batch)[0]
        if self.pooling == "first":
            state = hidden[:, 0]
        elif self.pooling == "mean":
            real = batch["attention_mask"][..., None].to(hidden.dtype)
            state = (hidden * real).sum(1) / real.sum(1)
        else:
            last = batch["attention_mask"].sum(1) - 1
            state = hidden[torch.arange(len(hidden), device=hidden.device), last]
        out: Tensor = self.out(self.dropout(torch.tanh(self.dense(self.dropout(state)))))
        return out


def patch_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What ``head: train`` learnt, as half-precision tensors: ``NAME.down`` and ``NAME.up`` of each ``LowRank``, and each
    other trained weight under its name in the merged model."""
    tensors: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            tensors[plain_name(name)] = p.detach().half()
    return tensors


def apply_patch(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Merge what ``patch_tensors`` kept into a plain model: W + up @ down, and the other weights as they stand.

    Raises ``EunoeError`` for a patch of another model, or half of one.
    """
    named = plain_names(model)
    for name in tensors:
        stem, _, half = name.rpartition(".")
        other = {"up": f"{stem}.down", "down": f"{stem}.up"}.get(half)
        if other is not None and other not in tensors:
            raise EunoeError(f"the patch holds {name} but not {other}. Train the head again.")
    with torch.no_grad():
        for name, value in tensors.items():
            if name.endswith(".up"):
                continue
            if name.endswith(".down"):
                stem = name.removesuffix(".down")
                target, change = f"{stem}.weight", tensors[f"{stem}.up"].float() @ value.float()
                if target not in named or named[target].shape != change.shape:
                    raise EunoeError(
                        f"the patch changes {target} {tuple(change.shape)}, which this model does not have."
                    )
                named[target].add_(change.to(named[target].dtype))
            elif name not in named or named[name].shape != value.shape:
                raise EunoeError(f"the patch holds {name} {tuple(value.shape)}, which this model does not have.")
            else:
                named[name].copy_(value)
