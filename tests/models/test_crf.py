"""The CRF against all paths, counted one by one."""

from __future__ import annotations

import itertools

import pytest
import torch

from eunoe.models.crf import CRF, log_partition, path_score

TAGS = 3
LENGTHS = (4, 1, 3)


def made() -> tuple[CRF, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    crf = CRF(TAGS).double()
    for p in crf.parameters():
        torch.nn.init.normal_(p)
    emissions = torch.randn(len(LENGTHS), max(LENGTHS), TAGS, dtype=torch.float64)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return crf, emissions, mask


def brute(crf: CRF, emissions: torch.Tensor, length: int) -> dict[tuple[int, ...], float]:
    """Each path of one row and its score, straight from the definition."""
    emissions, scores = emissions.detach(), {}
    for path in itertools.product(range(TAGS), repeat=length):
        score = crf.first[path[0]] + crf.last[path[-1]] + sum(emissions[t, tag] for t, tag in enumerate(path))
        scores[path] = float((score + sum(crf.transitions[a, b] for a, b in itertools.pairwise(path))).detach())
    return scores


@torch.no_grad()
def test_partition_scores_and_best_path_are_those_of_all_paths() -> None:
    crf, emissions, mask = made()
    field = (crf.transitions, crf.first, crf.last)
    partition, best = log_partition(emissions, mask, *field), crf.best(emissions, mask)
    for row, length in enumerate(LENGTHS):
        scores = brute(crf, emissions[row], length)
        everything = torch.tensor(list(scores.values()), dtype=torch.float64).logsumexp(0)
        assert partition[row].item() == pytest.approx(everything.item(), abs=1e-10)
        assert tuple(best[row]) == max(scores, key=lambda path: scores[path])
        for path, score in scores.items():
            tags = torch.zeros(1, max(LENGTHS), dtype=torch.long)
            tags[0, :length] = torch.tensor(path)
            ours = path_score(emissions[row : row + 1], tags, mask[row : row + 1], *field)
            assert ours.item() == pytest.approx(score, abs=1e-10)


def test_the_loss_is_the_negative_log_probability_of_the_paths_and_its_gradient_the_right_one() -> None:
    crf, emissions, mask = made()
    tags = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 0], [1, 1, 0, 0]])
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        scores = brute(crf, emissions[row], length)
        total = torch.tensor(list(scores.values()), dtype=torch.float64).logsumexp(0).item()
        expected += total - scores[tuple(tags[row, :length].tolist())]
    assert crf.loss(emissions, tags, mask).item() == pytest.approx(expected, abs=1e-10)
    emissions.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda e: crf.loss(e, tags, mask), emissions)


def test_what_stands_at_padding_changes_nothing() -> None:
    crf, emissions, mask = made()
    tags = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 0], [1, 1, 0, 0]])
    other = torch.where(mask[..., None], emissions, 99.0)
    assert torch.equal(crf.loss(other, tags, mask), crf.loss(emissions, tags, mask))
    assert crf.best(other, mask) == crf.best(emissions, mask)
    assert torch.equal(crf.loss(emissions, torch.where(mask, tags, 2), mask), crf.loss(emissions, tags, mask))


def test_at_its_start_it_is_a_softmax_at_each_position() -> None:
    _, emissions, mask = made()
    tags = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 0], [1, 1, 0, 0]])
    plain = torch.log_softmax(emissions, -1).gather(2, tags[..., None])[..., 0]
    assert CRF(TAGS).double().loss(emissions, tags, mask).item() == pytest.approx(-(plain * mask).sum().item())
