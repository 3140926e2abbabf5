"""HAT in adapters: each domain learns which units of shared adapters it uses; the masks stay soft, so it forgets a little.

Paper: Serra, Suris, Miron, Karatzoglou 2018, "Overcoming Catastrophic Forgetting with Hard Attention to the Task" (ICML 2018,
https://arxiv.org/abs/1801.01423; code https://github.com/joansj/hat), in adapters as Ke et al. use it for a baseline
(https://github.com/ZixuanKe/PyContinual, https://github.com/UIC-Liu-Lab/ContinualLM).

After each sub-layer stands an adapter (``plugins/adapter.py``), ``x + m2 * gelu(W2 (m1 * gelu(W1 x + b1)) + b2)``; x (..., width).
m = ``sigmoid(s * e)`` are the masks of the domain, over the inner and the outer units. Nothing else trains.

1. In an epoch s rises from 1/s_max to s_max = 400; e's gradient is compensated for that, and e clamped to +-6.
2. The loss has ``c * R``, ``R = sum_i m_i (1 - taken_i) / sum_i (1 - taken_i)`` over the units of all adapters, c = 0.75: units that
   earlier domains use cost nothing, free ones are taken only where they pay.
3. When the domain ends its masks at s_max are kept: ``taken = max(taken, m)``.
4. The gradients of W1's rows and b1 are multiplied by ``1 - taken1``, of W2 by ``1 - min(taken2, taken1)``, of b2 by ``1 - taken2``.

How it differs from ``cpt``: masks are not made hard, so a unit with s_max * e near 0 is used in part and protected in part, and what it
computes for an earlier domain drifts. And R keeps units free for later domains.

What we do differently, and why:

- The adapters have ``cpt``'s places and sizes, so that the two differ in the masks alone (sizes of the baselines are not published with
  CPT). ContinualLM's stand behind the feed-forward sub-layer alone, with such a pair of layers in place of each projection.
- HAT trains with plain SGD, for which a factor of 0 is the end of it. AdamW moves such a weight by momentum and decay, so the finished
  update leaves it alone where the factor is exactly 0. A factor between 0 and 1 AdamW all but undoes, as it divides a gradient by its
  own size: units used in part drift more than under SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eunoe.methods.masked import Masked, plugin_size, refuse_mask_settings
from eunoe.models.anatomy import anatomy
from eunoe.plugins.adapter import Adapter
from eunoe.plugins.inject import Site, inject
from eunoe.plugins.task_mask import Active, SoftMask


@dataclass(kw_only=True)
class HatSettings:
    """The published settings; the sizes are ours."""

    attention_size: int | None = None
    """Inner units of an adapter after the attention; None: two thirds of the model's width, as cpt."""
    ffn_size: int | None = None
    """Inner units of an adapter after the feed-forward sub-layer; None: the model's width, as cpt."""
    activation: str = "gelu"
    """What stands after both layers of an adapter: relu, gelu, silu or tanh."""
    anneal_over: Literal["epoch", "all"] = "epoch"
    """Let the mask temperature rise in each epoch anew, or once over all steps of a domain."""
    sparsity: float = 0.75
    """c, the weight of the regulariser that keeps units free for later domains."""
    s_max: float = 400.0
    """The largest mask temperature, at which masks are kept and used."""
    cosh_clip: float = 50.0
    """Limit on s * e in the compensation of the mask embeddings' gradients."""
    embedding_clip: float = 6.0
    """Limit on the mask embeddings after each step."""

    def __post_init__(self) -> None:
        refuse_mask_settings(type(self).__name__.removesuffix("Settings").lower(), self)

    def size(self, part: str, width: int) -> int:
        """Inner units of the adapter of ``part`` in a model of ``width``."""
        return plugin_size({"attention": self.attention_size, "feed_forward": self.ffn_size}[part], part, width)


class Hat(Masked):
    """Adapters learn through soft masks; the base model keeps its bits. ``forgets`` a little: see the module.

    >>> Hat(model, HatSettings(sparsity=1.5), ["law", "sport"])  # doctest: +SKIP
    """

    closed_at = 0.0

    def attach(self) -> tuple[Active, dict[str, Adapter]]:
        shared = Active(domains=tuple(self.domains), s=self.settings.s_max, s_max=self.settings.s_max)
        return shared, inject(self.model, anatomy(self.model), lambda site: self.adapter(site, shared))

    def adapter(self, site: Site, shared: Active) -> Adapter:
        """The adapter for one place."""
        size = self.settings.size(site.part, site.width)
        return Adapter(site.width, size, shared, activation=self.settings.activation, mask=SoftMask)


__all__ = ["Hat", "HatSettings"]
