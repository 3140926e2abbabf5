"""A linear-chain conditional random field over tags (Lafferty, McCallum and Pereira 2001), as ELMo's tagger has it.

The score of a path is what its tags get from the model, plus a weight for each pair of neighbours, for the first tag and for
the last. All in log space; rows may have different lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def path_score(
    emissions: Tensor, tags: Tensor, mask: Tensor, transitions: Tensor, first: Tensor, last: Tensor
) -> Tensor:
    """(B,) scores of the paths ``tags`` (B, T). ``emissions`` (B, T, K), ``mask`` (B, T) bool, True first; ``transitions`` (K, K)
    from a row's tag to a column's, ``first`` and ``last`` (K,). Tags at padding may be any number below K."""
    chosen = emissions.gather(2, tags[..., None])[..., 0]
    steps = transitions[tags[:, :-1], tags[:, 1:]]
    end = tags.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
    return (chosen * mask).sum(1) + (steps * mask[:, 1:]).sum(1) + first[tags[:, 0]] + last[end]


def log_partition(emissions: Tensor, mask: Tensor, transitions: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """(B,) the logarithm of the summed exponentials of all paths' scores; arguments as in ``path_score``."""
    alpha = first + emissions[:, 0]
    for t in range(1, emissions.shape[1]):
        after = torch.logsumexp(alpha[:, :, None] + transitions, 1) + emissions[:, t]
        alpha = torch.where(mask[:, t, None], after, alpha)
    return torch.logsumexp(alpha + last, 1)


def best_paths(emissions: Tensor, mask: Tensor, transitions: Tensor, first: Tensor, last: Tensor) -> list[list[int]]:
    """The path of the highest score of each row (Viterbi), as long as the row; arguments as in ``path_score``."""
    scores, came = first + emissions[:, 0], []
    for t in range(1, emissions.shape[1]):
        best, source = (scores[:, :, None] + transitions).max(1)
        scores = torch.where(mask[:, t, None], best + emissions[:, t], scores)
        came.append(source)
    ends, lengths = (scores + last).argmax(1).tolist(), mask.sum(1).tolist()
    paths = []
    for row, (tag, length) in enumerate(zip(ends, lengths, strict=True)):
        path = [tag]
        for source in reversed(came[: length - 1]):
            path.append(int(source[row, path[-1]]))
        paths.append(path[::-1])
    return paths


class CRF(nn.Module):
    """The field with its learnt weights, all 0 at first: then it is a softmax at each position.

    >>> crf = CRF(2)
    >>> crf.best(torch.tensor([[[0.0, 1.0], [3.0, 0.0]]]), torch.ones(1, 2, dtype=torch.bool))
    [[1, 0]]
    """

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(tags, tags))
        self.first = nn.Parameter(torch.zeros(tags))
        self.last = nn.Parameter(torch.zeros(tags))

    def loss(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """The summed negative log-likelihood of the paths ``tags`` (B, T), in nats."""
        field = (self.transitions, self.first, self.last)
        return (log_partition(emissions, mask, *field) - path_score(emissions, tags, mask, *field)).sum()

    def best(self, emissions: Tensor, mask: Tensor) -> list[list[int]]:
        """The most likely path of each row."""
        return best_paths(emissions, mask, self.transitions, self.first, self.last)


__all__ = ["CRF", "best_paths", "log_partition", "path_score"]
