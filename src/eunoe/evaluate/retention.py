"""How much of the pretrained model fine-tuning preserves: the measure that RecAdam's paper never gave.

The fine-tuned trunk is put back under the model's original LM head, and three things are measured:

- LM loss on general text, before and after: what the model can still say about text that the task has nothing of;
- the Euclidean distance of the trunk's weights to the pretrained ones, per layer (what RecAdam pulls on,
  https://arxiv.org/abs/2004.12651; its released script logs the square);
- linear CKA between the hidden states of the two models, per layer (Kornblith et al., ICML 2019,
  https://arxiv.org/abs/1905.00414): 1 where one is a rotation and scaling of the other.

The original head means its weights as they were, also where they are tied to the input embeddings, which fine-tuning moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from eunoe.data.collate import Batch
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import Score, lm_score
from eunoe.models.anatomy import anatomy
from eunoe.models.load import LanguageModel
from eunoe.optim.names import plain_names

TOKENS = 2048
"""CKA is computed over at most this many tokens; more change its third digit and cost a layer's states each."""


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two representations (n, p) and (n, q) of the same n tokens, in [0, 1]; float64.

    ||B^T A||^2 / (||A^T A|| ||B^T B||), Frobenius norms, of the centred matrices. A constant representation has no
    direction to compare: 1 against another constant, 0 against anything else.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])
    >>> round(linear_cka(x, 3 * x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])), 6)
    1.0
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not len(a):
        raise ValueError(f"need two matrices with the same rows, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    own = torch.linalg.matrix_norm(a.T @ a) * torch.linalg.matrix_norm(b.T @ b)
    if own == 0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(torch.linalg.matrix_norm(b.T @ a) ** 2 / own)


def distances(base: nn.Module, anchor: Mapping[str, Tensor], layers: tuple[str, ...]) -> dict[str, float]:
    """Euclidean distance of a trunk's weights to those of the same plain names in ``anchor``: per layer, and ``total``.

    Weights outside ``layers`` count as ``embeddings`` where they come before the layers, else as ``other``; plug-ins and
    other weights that the anchor lacks are left out.
    """
    squares: dict[str, float] = {}
    seen_layer = False
    for name, p in plain_names(base).items():
        layer = next((known for known in layers if name.startswith(f"{known}.")), None)
        seen_layer |= layer is not None
        if name in anchor:
            here = layer or ("other" if seen_layer else "embeddings")
            moved = old_rows(p.detach(), anchor[name]) - anchor[name].to(p)
            squares[here] = squares.get(here, 0.0) + float(moved.double().square().sum())
    by_layer = {name: value**0.5 for name, value in squares.items()}
    return {**by_layer, "total": sum(squares.values()) ** 0.5}


def old_rows(p: Tensor, anchor: Tensor) -> Tensor:
    """``p`` without the rows that were added to it since it was ``anchor`` (new words of an embedding table come last)."""
    return p if p.shape == anchor.shape else p[: len(anchor)]


def reheaded(lm: nn.Module, trunk: nn.Module) -> nn.Module:
    """A copy of the language model ``lm`` with the weights of ``trunk``, a fine-tuned copy of its base, and its own head.

    Rows that a transfer added to the embedding table are left out.

    Plug-ins that both have are weights like others; the copy reads through the masks that ``lm`` reads through. Raises
    ``EunoeError`` where the model has no LM head.
    """
    from transformers import PreTrainedModel  # two seconds to load, and a list of methods needs no model

    model = deepcopy(lm)
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if not isinstance(head, nn.Module):
        raise EunoeError(f"{type(lm).__name__} has no LM head to put a fine-tuned trunk under; load a model with one.")
    head.weight = nn.Parameter(
        head.get_parameter("weight").detach().clone()
    )  # untied: the embeddings below it are about to change
    with torch.no_grad():
        own = plain_names(anatomy(model).base)
        for name, p in plain_names(trunk).items():
            own[name].copy_(old_rows(p, own[name]))
    return model


@torch.inference_mode()
def states(base: nn.Module, batches: list[Batch], tokens: int = TOKENS) -> list[Tensor]:
    """Hidden states of the first ``tokens`` tokens: one (n, width) per layer, the embeddings' first; without dropout."""
    base.eval()
    device = next(base.parameters()).device
    layers: list[list[Tensor]] = []
    n = 0
    for batch in batches:
        if n >= tokens:
            break
        hidden = base(input_ids=batch["input_ids"].to(device), output_hidden_states=True).hidden_states
        layers = layers or [[] for _ in hidden]
        for vectors, state in zip(layers, hidden, strict=True):
            vectors.append(state.flatten(0, 1).float().cpu())
        n += batch["input_ids"].numel()
    return [torch.cat(vectors)[:tokens] for vectors in layers]


class Retention:
    """Measures fine-tuned trunks against one pretrained model on named general texts; the model's own side is made once.

    >>> Retention(lm, {"wikipedia": batches}).measure(classifier.trunk)  # doctest: +SKIP
    [Score("lm_loss@wikipedia", 4.21, 1234, {"before": 4.07}), Score("anchor_distance", ...), Score("cka@wikipedia", ...)]
    """

    def __init__(self, lm: LanguageModel, texts: Mapping[str, list[Batch]]) -> None:
        base = anatomy(lm.model).base
        self.lm, self.texts = lm, texts
        self.layers = tuple(layer.name for layer in anatomy(lm.model).layers)
        self.anchor = {name: p.detach().clone() for name, p in plain_names(base).items()}
        self.before = {name: lm_score(lm.model, batches).value for name, batches in texts.items()}
        self.states = {name: states(base, batches) for name, batches in texts.items()}

    def measure(self, trunk: nn.Module, lm: nn.Module | None = None) -> list[Score]:
        """``lm_loss@TEXT``, ``cka@TEXT`` of each text and ``anchor_distance``; details hold the loss before and layers.

        ``lm``: the model that ``trunk`` was copied from, if it is no longer the pretrained one (it has learnt domains, or has
        plug-ins); its head is used, and it is compared with the pretrained model all the same.
        """
        model = reheaded(self.lm.model if lm is None else lm, trunk)
        base = anatomy(model).base
        scores: list[Score] = []
        for name, batches in self.texts.items():
            score = lm_score(model, batches)
            scores.append(Score(f"lm_loss@{name}", score.value, score.n, {"before": self.before[name]}))
            moved_states = states(base, batches)
            each = {
                str(i): linear_cka(a, b) for i, (a, b) in enumerate(zip(self.states[name], moved_states, strict=True))
            }
            scores.append(Score(f"cka@{name}", sum(each.values()) / len(each), len(moved_states[0]), {"layers": each}))
        moved = distances(base, self.anchor, self.layers)
        total = moved.pop("total")
        n = sum(p.numel() for p in base.parameters())
        return [*scores, Score("anchor_distance", total, n, {"layers": moved})]
