"""Capsules before a masked adapter: what each domain learnt so far makes of a token, and a vote among them.

Paper: Ke, Xu, Liu 2021, "Adapting BERT for Continual Learning of a Sequence of Aspect Sentiment Classification Tasks" (BCL,
NAACL 2021, https://aclanthology.org/2021.naacl-main.378); routing of Sabour et al. 2017, https://arxiv.org/abs/1710.09829.

x (..., width) is what enters the adapter, t the domain in use, i = 0..t the domains up to it:

- domain i's capsule: ``v_i = squash(B_i (A_i x + a_i) + b_i)`` (..., size); A_i (hidden, width), B_i (size, hidden);
- its say: ``u_i = W_i v_i``; W_i (size, size);
- the vote by ``routing``; it is mapped up by the domain's own linear layer ``C_t vote + c_t`` (..., width) and added to x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eunoe.models.cross_entropy import at_least_float32
from eunoe.plugins.adapter import Adapter, Affine
from eunoe.plugins.task_mask import Active


def squash(v: Tensor) -> Tensor:
    """``|v|^2 / (1 + |v|^2) * v / |v|`` along the last axis: the direction stays, the length comes below 1."""
    squared = v.square().sum(-1, keepdim=True) + 1e-16  # a capsule of nothing but zeros has no direction
    return squared / (1 + squared) * v / squared.sqrt()


def routing(u: Tensor, iterations: int) -> Tensor:
    """Dynamic routing of the domains' says ``u`` (..., domains, size) to one vote (..., size).

    b = 0; then ``iterations`` times: ``c = softmax(b)`` over the domains, ``vote = sum_i c_i u_i``, and
    ``b_i += <u_i, squash(vote)>``: who agrees with the vote weighs more in the next.

    >>> routing(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), 1)
    tensor([1., 1.])
    """
    b = torch.zeros_like(u[..., 0])
    vote = u.mean(-2)
    for last in range(1, iterations + 1):
        vote = (torch.softmax(b, -1)[..., None] * u).sum(-2)
        if last < iterations:
            b = b + (u * squash(vote)[..., None, :]).sum(-1)
    return vote


class Capsules(nn.Module):
    """One capsule for each domain and their vote; (..., width) -> (..., width). See the module.

    ``open`` says which of its weights a domain learns.
    """

    def __init__(self, width: int, hidden: int, size: int, iterations: int, active: Active) -> None:
        super().__init__()
        self.active = active
        self.iterations = iterations
        domains = range(len(active.domains))
        self.into = nn.ModuleList(nn.Sequential(Affine(width, hidden), Affine(hidden, size)) for _ in domains)
        self.say = nn.ParameterList(nn.Parameter(torch.randn(size, size)) for _ in domains)
        self.out = nn.ModuleList(Affine(size, width) for _ in domains)

    def forward(self, x: Tensor) -> Tensor:
        t = self.active.domain
        if t is None:
            raise RuntimeError("no domain is active: the plug-in is off and its capsules mean nothing")
        v = squash(at_least_float32(torch.stack([self.into[i](x) for i in range(t + 1)], -2)))
        w = torch.stack([self.say[i] for i in range(t + 1)])
        u = (w * v[..., None, :]).sum(-1)  # no matrix product: of 3 numbers it would only lose digits in half precision
        up: Tensor = self.out[t](routing(u, self.iterations))
        return up

    def open(self, domain: int | None) -> None:
        """Let those weights train that the domain reads: all capsules up to its own, and its own way up."""
        for i in range(len(self.active.domains)):
            reads = domain is not None and i <= domain
            self.into[i].requires_grad_(reads)
            self.say[i].requires_grad_(reads)
            self.out[i].requires_grad_(i == domain)


class CapsuleAdapter(Adapter):
    """A masked adapter whose layers read ``x + capsules(x)``; returns ``x + h2`` as ``Adapter`` does."""

    def __init__(self, width: int, size: int, active: Active, capsules: Capsules, **how: Any) -> None:
        super().__init__(width, size, active, **how)
        self.capsules = capsules

    def change(self, inside: Tensor) -> Tensor:
        return super().change(inside + self.capsules(inside).to(inside.dtype))


__all__ = ["CapsuleAdapter", "Capsules", "routing", "squash"]
