"""Learned masks over units, one per domain: which units of a layer a domain uses.

Paper: Serra et al. 2018, "Overcoming Catastrophic Forgetting with Hard Attention to the Task" (HAT,
https://arxiv.org/abs/1801.01423), as used by Ke et al. 2022, "Continual Training of Language Models for Few-Shot
Learning" (CPT, https://arxiv.org/abs/2210.05549; code https://github.com/UIC-Liu-Lab/CPT).

While a domain is learnt its mask is soft, ``sigmoid(s * e)``, and ``s`` grows from 1/s_max to s_max. At s_max the mask
is hard (CPT; HAT stays soft, so that blocking is only partial and old outputs drift). A finished domain's hard mask is
kept as packed bits and read from them.

The release keeps a table of embeddings, one row a domain. Here there is one row, that of the running domain: a finished
domain reads its bits alone, so its row would be dead weight in the model, in the optimizer's moments and on disk, and
would make a step cost more with every domain. A finished domain costs one bit a unit.

What differs from the release: the threshold ``sigmoid(s_max * e) > 0.5`` is taken as ``e > 0``, which is the same but
for positive ``e`` so small that the sigmoid rounds to one half; the domain and ``s`` come from a shared ``Active``
instead of call arguments, which transformers' layers cannot pass on.

Shapes: T domains, n units, B = ceil(n / 8) bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError


def gate(embedding: Tensor, s: float) -> Tensor:
    """The soft mask ``sigmoid(s * e)``, same shape."""
    return torch.sigmoid(s * embedding)


def hard(embedding: Tensor) -> Tensor:
    """The mask at s_max: True where the gate is more than half open, which is where ``e > 0``. Bool, same shape."""
    return embedding > 0


def anneal(progress: float, s_max: float) -> float:
    """``s`` after a fraction ``progress`` of a domain's steps: 1/s_max at 0, s_max at 1, straight between.

    >>> anneal(0.0, 400.0), anneal(1.0, 400.0)
    (0.0025, 400.0)
    """
    return 1 / s_max + (s_max - 1 / s_max) * progress


def refuse_s_max(s_max: float, name: str) -> None:
    """Raises ``EunoeError`` for a largest temperature (called ``name``) that is not above 1: masks would be hard from the start."""
    if not 1 < s_max < math.inf:
        raise EunoeError(f"{name} is {s_max}; give a finite number above 1 (published: 400).")


def within_epoch(progress: float, epochs: float) -> float:
    """Progress inside the running epoch, in [0, 1), from progress over all of a domain's ``epochs``.

    The release starts ``s`` again in each epoch. Part of an epoch would end with masks that are still soft, so as many
    equal rounds are made as there are whole epochs, to the nearest, and at least one.

    >>> within_epoch(0.75, 2.0), within_epoch(0.75, 0.3)
    (0.5, 0.75)
    """
    place = progress * max(1, round(epochs))
    return max(0.0, place - math.floor(place + 1e-9))  # 3 * (1 / 3) may fall short of 1 by a rounding


def compensate(grad: Tensor, embedding: Tensor, s: float, s_max: float = 400.0, clip: float = 50.0) -> Tensor:
    """The embedding's gradient with the effect of annealing undone: s_max times the one that s = 1 would give.

    ``grad * (s_max / s) * (cosh(clip(s * e, -clip, clip)) + 1) / (cosh(e) + 1)``: the gate's slope is
    ``s / (2 (cosh(s e) + 1))``, next to nothing for most units once ``s`` is large.
    """
    return grad * (s_max / s) * (torch.cosh((s * embedding).clamp(-clip, clip)) + 1) / (torch.cosh(embedding) + 1)


def clamp(embedding: Tensor, limit: float = 6.0) -> Tensor:
    """``e`` held within +-limit, where the gate at s = 1 still has a slope."""
    return embedding.clamp(-limit, limit)


def accumulate(before: Tensor, mask: Tensor) -> Tensor:
    """The units taken once this mask's domain is finished: the elementwise maximum."""
    return torch.maximum(before, mask)


def free_units(taken: Tensor) -> Tensor:
    """The factor on gradients of weights that belong to one unit (rows of W1, b1, b2): ``1 - taken``, shape (n,)."""
    return 1 - taken


def free_pairs(taken_out: Tensor, taken_in: Tensor) -> Tensor:
    """The factor on W2's gradient: blocked only where both units are taken. Shape (out units, in units)."""
    return 1 - torch.minimum(taken_out[:, None], taken_in[None, :])


def sparsity(masks: Sequence[Tensor], taken: Sequence[Tensor]) -> Tensor:
    """HAT's regulariser: the mean of the soft masks over the units that are still free, over all layers. A scalar.

    ``sum_l sum_i m_li (1 - taken_li) / sum_l sum_i (1 - taken_li)``: units that earlier domains hold cost nothing. 0
    where no unit is free.
    """
    free = [free_units(t) for t in taken]
    cost = torch.stack([(m * f).sum() for m, f in zip(masks, free, strict=True)]).sum()
    return cost / torch.stack([f.sum() for f in free]).sum().clamp(min=1)


def pack(mask: Tensor) -> Tensor:
    """A bool mask (..., n) as uint8 (..., B), lowest bit first.

    >>> pack(torch.tensor([True, False, True])).tolist()
    [5]
    """
    padded = nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    bits = padded.reshape(*padded.shape[:-1], padded.shape[-1] // 8, 8) << _places(mask.device)
    return bits.sum(-1, dtype=torch.uint8)


def packed_bytes(n: int) -> int:
    """B of n units, without a mask at hand."""
    return -(-n // 8)


def unpack(bits: Tensor, n: int) -> Tensor:
    """The bool mask (..., n) that ``pack`` was given."""
    return (bits[..., None] >> _places(bits.device) & 1).flatten(-2)[..., :n].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


@dataclass
class Active:
    """What all plug-ins of a model read at each forward pass: one object, shared by them."""

    domains: tuple[str, ...]
    domain: int | None = None
    """Index of the domain whose masks are used; None: plug-ins are off and the model is its base, bit for bit."""
    running: int | None = None
    """The domain being learnt: the one that the mask embeddings belong to."""
    s: float = 400.0
    s_max: float = 400.0
    finished: list[int] = field(default_factory=list)
    """Domains whose hard masks are kept as bits, in the order they were learnt, which need not be that of ``domains``."""


class TaskMask(nn.Module):
    """The masks over ``n`` units: the embedding (n,) of the running domain, and the bits of the finished ones.

    The embedding starts N(0, 1) (the release's default); ``begin`` draws it anew for the next domain. ``bits`` (T, B)
    holds the hard masks of finished domains and ``taken`` (n,) their union, 0 or 1. Neither is part of ``state_dict``:
    who saves a plug-in also says which domains are finished (``methods/cpt.py``, ``plugins/files.py``).
    """

    bits: Tensor
    taken: Tensor

    def __init__(self, n: int, active: Active) -> None:
        super().__init__()
        self.n = n
        self.active = active
        self.embedding = nn.Parameter(torch.randn(n))
        self.register_buffer("bits", pack(torch.zeros(len(active.domains), n, dtype=torch.bool)), persistent=False)
        self.register_buffer("taken", torch.zeros(n), persistent=False)
        self.users: set[int] = set()
        """Finished domains with a unit here. A Python set, so that asking costs no wait for the device."""

    @property
    def rows(self) -> Tensor:
        """What is kept of each domain, a row each."""
        return self.bits

    def forward(self) -> Tensor:
        """The mask (n,) of the active domain in the embedding's dtype: soft below s_max, exactly 0 or 1 at s_max.

        A finished domain's is exactly 0 or 1 at any s.
        """
        active = self.active
        if active.domain is None:
            raise RuntimeError("no domain is active: the plug-in is off and its masks mean nothing")
        if active.domain == active.running and active.domain not in active.finished and active.s < active.s_max:
            return gate(self.embedding, active.s)
        return self.hard_mask(active.domain).to(self.embedding.dtype)

    def hard_mask(self, domain: int) -> Tensor:
        """The hard mask (n,) of a domain, bool: the kept one if it is finished, as it is now if it is running."""
        if domain in self.active.finished:
            return unpack(self.bits[domain], self.n)
        if domain != self.active.running:
            raise RuntimeError(
                f"domain {self.active.domains[domain]!r} is neither finished nor running: it has no mask"
            )
        return hard(self.embedding.detach())

    def used(self) -> bool:
        """Has the active domain a unit here? The running one may get one any time."""
        return self.active.domain not in self.active.finished or self.active.domain in self.users

    def begin(self, generator: torch.Generator) -> None:
        """A fresh embedding for the domain that runs from now on, drawn on the CPU, so the same on any device."""
        with torch.no_grad():
            self.embedding.copy_(torch.randn(self.n, generator=generator))

    def keep(self, domain: int) -> None:
        """Keep the hard mask of the running domain, which ends now and is ``domain``."""
        self.restore(domain, pack(hard(self.embedding.detach())))

    def restore(self, domain: int, row: Tensor) -> None:
        """Take back what ``keep`` had kept: the packed mask (B,) of a finished domain."""
        self.bits[domain] = row
        if row.any():
            self.users.add(domain)
        self.taken = accumulate(self.taken, unpack(self.bits[domain], self.n).to(self.taken.dtype))

    def clear(self) -> None:
        """No domain is finished any more, and every unit free."""
        self.bits.zero_()
        self.taken.zero_()
        self.users.clear()


class SoftMask(TaskMask):
    """HAT's: the masks of finished domains stay soft, ``sigmoid(s_max * e)``, and so does ``taken``, their maximum.

    A unit with e near 0 is then used in part and blocked in part. ``kept`` (T, n) holds the masks themselves.
    """

    kept: Tensor

    def __init__(self, n: int, active: Active) -> None:
        super().__init__(n, active)
        del self._buffers["bits"]
        self.register_buffer("kept", torch.zeros(len(active.domains), n), persistent=False)

    @property
    def rows(self) -> Tensor:
        return self.kept

    def forward(self) -> Tensor:
        """The mask (n,) of the active domain in the embedding's dtype, never thresholded."""
        active = self.active
        if active.domain is None:
            raise RuntimeError("no domain is active: the plug-in is off and its masks mean nothing")
        if active.domain in active.finished:
            return self.kept[active.domain].to(self.embedding.dtype)
        if active.domain != active.running:
            raise RuntimeError(
                f"domain {active.domains[active.domain]!r} is neither finished nor running: it has no mask"
            )
        return gate(self.embedding, active.s)

    def keep(self, domain: int) -> None:
        self.restore(domain, gate(self.embedding.detach(), self.active.s_max))

    def restore(self, domain: int, row: Tensor) -> None:
        self.kept[domain] = row
        self.taken = accumulate(self.taken, self.kept[domain].to(self.taken.dtype))

    def clear(self) -> None:
        self.kept.zero_()
        self.taken.zero_()


class OpenMask(TaskMask):
    """No mask (an ablation): every domain uses every unit, and none is taken, so that nothing is closed to later domains."""

    def __init__(self, n: int, active: Active) -> None:
        super().__init__(n, active)
        self.embedding.requires_grad_(False)
        self.begin()

    def forward(self) -> Tensor:
        """Ones (n,)."""
        return torch.ones_like(self.embedding)

    def begin(self, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            self.embedding.fill_(1.0)

    def restore(self, domain: int, row: Tensor) -> None:
        super().restore(domain, row)
        self.taken.zero_()


__all__ = [
    "Active",
    "OpenMask",
    "SoftMask",
    "TaskMask",
    "accumulate",
    "anneal",
    "clamp",
    "compensate",
    "free_pairs",
    "free_units",
    "gate",
    "hard",
    "pack",
    "packed_bytes",
    "refuse_s_max",
    "sparsity",
    "unpack",
    "within_epoch",
]
