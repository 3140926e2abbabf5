"""What is left of the pretrained model: CKA by its formula, distances by hand, the original head under a moved trunk."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eunoe.data.corpus import load_blocks
from eunoe.evaluate.evaluator import eval_batches, lm_score
from eunoe.evaluate.retention import Retention, distances, linear_cka, reheaded
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import Classifier
from eunoe.models.load import LanguageModel, load_lm
from eunoe.recipe import CorpusSettings, ModelSettings
from tests.tiny import tiny_folder
from tests.tiny_run import write_text


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_lm(ModelSettings(name=str(tiny_folder(tmp_path_factory.mktemp("lm")))))


@pytest.fixture(scope="module")
def retention(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Retention:
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUNOE_CACHE", str(folder / "cache"))
        corpus = CorpusSettings(source=str(write_text(folder / "general.txt", seed=3, n=40)))
        return Retention(lm, {"general": eval_batches(lm, load_blocks(corpus, lm.tokenizer, 16, "all"), 4, 0.3)})


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- linear CKA ------------------------------------------------------------------------------------------------------
def test_cka_is_the_papers_formula_over_centred_gram_matrices() -> None:
    a, b = random(1, 30, 5).double().numpy(), random(2, 30, 7).double().numpy()
    centre = np.eye(30) - 1 / 30
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))  # HSIC form: another way to the same number
    assert linear_cka(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_cka_is_1_for_a_rotation_scaling_and_shift_and_below_1_for_anything_else(seed: int, scale: float) -> None:
    a = random(seed, 20, 4).double()
    q, _ = torch.linalg.qr(random(seed + 1, 4, 4).double())
    assert linear_cka(a, scale * a @ q + 3) == pytest.approx(1, abs=1e-9)
    other = linear_cka(a, random(seed + 2, 20, 4))
    assert 0 <= other < 1
    assert other == pytest.approx(linear_cka(random(seed + 2, 20, 4), a))


def test_a_constant_representation_is_like_another_constant_and_like_nothing_else() -> None:
    assert linear_cka(torch.ones(5, 2), torch.zeros(5, 3)) == 1
    assert linear_cka(torch.ones(5, 2), random(0, 5, 2)) == 0
    with pytest.raises(ValueError, match="same rows"):
        linear_cka(torch.ones(5, 2), torch.ones(4, 2))


# -- distances -------------------------------------------------------------------------------------------------------
def test_distances_are_euclidean_per_layer_and_add_in_squares(lm: LanguageModel) -> None:
    base = deepcopy(anatomy(lm.model).base)
    anchor = {name: p.detach().clone() for name, p in base.named_parameters()}
    layers = tuple(layer.name for layer in anatomy(lm.model).layers)
    named = dict(base.named_parameters())
    with torch.no_grad():
        named[f"{layers[0]}.output.dense.bias"][:4] += 1.5  # 4 entries by 1.5: distance 3
        anatomy(base).embeddings.weight[0, :4] += 2  # distance 4
    actual = distances(base, anchor, layers)
    assert actual[layers[0]] == pytest.approx(3)
    assert actual["embeddings"] == pytest.approx(4)
    assert actual["total"] == pytest.approx(5)
    assert actual[layers[1]] == 0


# -- the trunk under its original head -------------------------------------------------------------------------------
def test_a_trunk_that_did_not_move_retains_everything(lm: LanguageModel, retention: Retention) -> None:
    scores = {s.metric: s for s in retention.measure(Classifier(deepcopy(lm.model), 2, "first").trunk)}
    assert scores["lm_loss@general"].value == scores["lm_loss@general"].detail["before"]  # type: ignore[index]
    assert scores["anchor_distance"].value == 0
    assert scores["cka@general"].value == pytest.approx(1, abs=1e-6)
    assert len(scores["cka@general"].detail["layers"]) == 1 + lm.model.config.num_hidden_layers  # type: ignore[index]


def test_the_head_keeps_its_weights_where_they_are_tied_to_embeddings_that_moved(lm: LanguageModel) -> None:
    trunk = deepcopy(anatomy(lm.model).base)
    with torch.no_grad():
        anatomy(trunk).embeddings.weight += 1
    before = lm.model.get_output_embeddings().weight.clone()
    assert before is not None
    model = reheaded(lm.model, trunk)
    assert torch.equal(model.get_output_embeddings().weight, before)
    assert torch.equal(anatomy(model).embeddings.weight, anatomy(trunk).embeddings.weight)
    assert torch.equal(lm.model.get_output_embeddings().weight, before)  # the model itself is left alone


def test_a_trunk_that_moved_loses_loss_distance_and_similarity_and_the_model_stays(
    lm: LanguageModel, retention: Retention
) -> None:
    trunk = deepcopy(anatomy(lm.model).base)
    with torch.no_grad():
        for p in trunk.parameters():
            p += 0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    scores = {s.metric: s for s in retention.measure(trunk)}
    assert scores["lm_loss@general"].value != retention.before["general"]
    assert scores["cka@general"].value < 0.99
    assert scores["anchor_distance"].value > 1
    layers = scores["anchor_distance"].detail["layers"]  # type: ignore[index]
    assert sum(v**2 for v in layers.values()) ** 0.5 == pytest.approx(scores["anchor_distance"].value)
    assert lm_score(lm.model, retention.texts["general"]).value == retention.before["general"]


def test_the_loss_is_that_of_the_reheaded_model(lm: LanguageModel, retention: Retention) -> None:
    trunk = deepcopy(anatomy(lm.model).base)
    with torch.no_grad():
        next(p for p in trunk.parameters() if isinstance(p, nn.Parameter)).mul_(1.5)
    model = reheaded(lm.model, trunk)
    actual = {s.metric: s.value for s in retention.measure(trunk)}
    assert actual["lm_loss@general"] == lm_score(model, retention.texts["general"]).value
