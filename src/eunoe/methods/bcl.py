"""BCL: HAT's masked adapters, which also read what the capsules of the domains so far agree on.

Paper: Ke, Xu, Liu 2021, "Adapting BERT for Continual Learning of a Sequence of Aspect Sentiment Classification Tasks" (NAACL 2021,
https://aclanthology.org/2021.naacl-main.378; code https://github.com/ZixuanKe/PyContinual), as used for post-training by
https://github.com/UIC-Liu-Lab/ContinualLM.

Two modules share knowledge and keep it. Task-specific: the adapter with soft masks of ``methods/hat.py``, trained, kept and protected
as there. Shared: before the adapter's layers stand capsules (``plugins/capsule.py``), one of each domain. For a token's state x, the
capsules of domains 0..t (never of later ones) vote by dynamic routing in three iterations, and a linear layer of domain t maps the
vote up: ``y = x + adapter_layers(x + C_t vote(x) + c_t)``. Similar domains agree and weigh more, so a domain takes over from those that
help it.

While domain t is learnt, all capsules up to its own train, those of earlier domains too, as in the release. What an earlier domain
reads therefore changes: BCL protects the adapters' units and not the shared capsules, so it **forgets**, more than ``hat``.

What we do differently, and why:

- The vote is taken for each token by itself (W_i is 3 x 3). The release's W_i mixes all positions of a text of one fixed length; with
  that a causal LM would see later tokens.
- ``squash`` is over a capsule's own numbers; the release's runs over the axis of tasks.
- Places and sizes of the adapters are ``cpt``'s, as for ``hat``; ``capsule_hidden`` is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from eunoe.methods.base import Stage
from eunoe.methods.hat import Hat, HatSettings
from eunoe.plugins.adapter import Adapter
from eunoe.plugins.capsule import CapsuleAdapter, Capsules
from eunoe.plugins.inject import Site, adapters
from eunoe.plugins.task_mask import Active, SoftMask


@dataclass(kw_only=True)
class BclSettings(HatSettings):
    """Those of ``hat``, and the capsules'."""

    capsule_size: Annotated[int, Field(ge=1)] = 3
    """Numbers of a capsule."""
    capsule_hidden: Annotated[int, Field(ge=1)] = 100
    """Units between a token's state and a capsule (ours)."""
    iterations: Annotated[int, Field(ge=1)] = 3
    """Rounds of the dynamic routing."""


class Bcl(Hat):
    """Adapters behind capsules on a frozen model; the adapters' units are protected by soft masks, the capsules are shared.

    >>> Bcl(model, BclSettings(capsule_hidden=50), ["law", "sport"])  # doctest: +SKIP
    """

    def adapter(self, site: Site, shared: Active) -> Adapter:
        own: BclSettings = self.settings
        capsules = Capsules(site.width, own.capsule_hidden, own.capsule_size, own.iterations, shared)
        size, how = own.size(site.part, site.width), {"activation": own.activation, "mask": SoftMask}
        return CapsuleAdapter(site.width, size, shared, capsules, **how)

    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        for capsules in _capsules(self.model):
            capsules.open(self.active.running)

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """As ``hat``, with those capsules that the domain reads."""
        rates = super().for_end_task(model, domain, freeze)
        for capsules in _capsules(model):
            capsules.open(capsules.active.domain)
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        return {name: rate for name, rate in rates.items() if name in trains}


def _capsules(model: nn.Module) -> Iterator[Capsules]:
    for adapter in adapters(model).values():
        assert isinstance(adapter, CapsuleAdapter)
        yield adapter.capsules


__all__ = ["Bcl", "BclSettings"]
