"""AWD-LSTM against what fastai 2.8.12 computes (shared/golden/awd_lstm: evaluation mode, float32, to 1e-5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eunoe.models.awd.fastai import from_fastai, model_from, to_fastai
from tests.conftest import shared

CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(shared("golden/awd_lstm/awd_lstm.safetensors"))


def loaded(golden: dict[str, torch.Tensor], part: str, **change: Any) -> Any:
    prefix = f"{part}.model."
    state = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    return model_from(from_fastai(state), **change)


@torch.no_grad()
def test_the_language_model_reads_two_chunks(golden: dict[str, torch.Tensor]) -> None:
    model, state = loaded(golden, "lm"), None
    for i in range(2):
        ids = golden[f"lm.input.{i}"]
        read = model.transformer(input_ids=ids, past_key_values=state, use_cache=True)
        out = model(input_ids=ids, past_key_values=state, use_cache=True)
        torch.testing.assert_close(read.raw, golden[f"lm.raw.{i}"], **CLOSE)
        torch.testing.assert_close(out.logits, golden[f"lm.logits.{i}"], **CLOSE)
        state = out.past_key_values
    assert not torch.allclose(model(input_ids=golden["lm.input.1"]).logits, golden["lm.logits.1"], **CLOSE), (
        "the second chunk starts from the first one's state"
    )


@torch.no_grad()
def test_the_classifier_reads_padded_rows(golden: dict[str, torch.Tensor]) -> None:
    """Its input is padded to no multiple of the chunk, where fastai skips tokens: ``padding: fastai`` computes what it does."""
    settings = {"chunk": 7, "pooled": 20, "pad_token_id": 1}
    model = loaded(golden, "clas", padding="fastai", **settings)
    torch.testing.assert_close(model(golden["clas.input"]).logits, golden["clas.logits"], **CLOSE)
    exact = loaded(golden, "clas", **settings)
    torch.testing.assert_close(exact(golden["clas.input"]).logits[0], golden["clas.logits"][0], **CLOSE)
    for row in golden["clas.input"][1:]:
        alone = exact(row[row != 1][None]).logits
        torch.testing.assert_close(
            loaded(golden, "clas", padding="fastai", **settings)(row[row != 1][None]).logits, alone, **CLOSE
        )


@pytest.mark.parametrize("part", ["lm", "clas"])
def test_weights_go_back_to_fastai(golden: dict[str, torch.Tensor], part: str) -> None:
    back = to_fastai(loaded(golden, part))
    prefix = f"{part}.model."
    for name, value in golden.items():
        if name.startswith(prefix):
            assert torch.equal(back[name.removeprefix(prefix)], value), name
