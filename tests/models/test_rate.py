"""``model.dropout`` sets what acts, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from eunoe.errors import EunoeError
from eunoe.models.load import load_lm
from eunoe.models.rate import set_dropout
from eunoe.recipe import ModelSettings
from tests.models.families import CHANGES, tiny, tokens
from tests.models.test_fit import saved


def varies(model: nn.Module) -> bool:
    """Whether two passes in training differ; the weights are made large, so that attention shows as well."""
    model.train()
    ids = tokens()
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("own", [0.0, 0.3])
@pytest.mark.parametrize("family", sorted(set(CHANGES) - {"t5"}))
def test_a_rate_acts_in_every_family_whatever_its_own_was(family: str, own: float, tmp_path: Path) -> None:
    rates = {key: own for key in tiny(family).config.to_dict() if "drop" in key and key != "classifier_dropout"}
    folder = saved(family, tmp_path / family, **rates)
    assert not varies(load_lm(ModelSettings(name=str(folder), dropout=0.0)).model)
    lm = load_lm(ModelSettings(name=str(folder), dropout=0.5))
    assert varies(lm.model)
    every = [m.p for m in lm.model.modules() if isinstance(m, nn.Dropout)]
    assert set(every) <= {0.5}


@pytest.mark.parametrize("place", ["attn", "resid", "embd"])
def test_each_of_gpt2s_rates_is_set(place: str, tmp_path: Path) -> None:
    rates = {f"{name}_pdrop": 0.4 if name == place else 0.0 for name in ("attn", "resid", "embd")}
    folder = saved("gpt2", tmp_path / "gpt2", **rates)
    assert varies(load_lm(ModelSettings(name=str(folder))).model)
    assert not varies(load_lm(ModelSettings(name=str(folder), dropout=0.0)).model)


def test_t5s_encoder_too() -> None:
    model = tiny("t5", dropout_rate=0.4)
    assert varies(model)
    set_dropout(model, 0.0)
    assert not varies(model)
    set_dropout(model, 0.5)
    assert varies(model)


def test_where_there_is_no_dropout_the_option_is_refused_by_its_name() -> None:
    model = tiny("gpt2")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, nn.Identity())
    with pytest.raises(EunoeError, match=r"model\.dropout is 0\.1, but a model of type 'gpt2' has no dropout"):
        set_dropout(model, 0.1)
