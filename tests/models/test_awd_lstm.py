"""AWD-LSTM as a Hugging Face model: kernel, dropouts, padding, state, saving, generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from eunoe.errors import EunoeError
from eunoe.models.awd import register
from eunoe.models.awd.classifier import AwdLstmForSequenceClassification
from eunoe.models.awd.config import AwdLstmConfig
from eunoe.models.awd.head import concat_pool
from eunoe.models.awd.lstm import _torch_lstm, lstm
from eunoe.models.awd.model import AwdLstmForCausalLM, AwdLstmModel, locked, set_rates

SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 8, "cell_size": 12, "num_hidden_layers": 3}


def tiny(kind: Any = AwdLstmForCausalLM, seed: int = 0, **change: Any) -> Any:
    torch.manual_seed(seed)
    return kind(AwdLstmConfig(**{**SMALL, **change})).eval()


def ids(rows: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(3, 40, (rows, length), generator=torch.Generator().manual_seed(1))


# -- the kernel ------------------------------------------------------------------------------------------------------
def test_the_kernel_is_an_lstm_both_ways() -> None:
    """Against torch.nn.LSTM, in float64: outputs, both states at the end, every gradient, the start's too."""
    torch.manual_seed(0)
    theirs = nn.LSTM(5, 4).double()
    x, h, c = torch.randn(6, 3, 5, dtype=torch.float64), *torch.randn(2, 3, 4, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (x, h, c)]
    weights = [p.detach().clone().requires_grad_() for p in theirs.parameters()]
    out, (h_end, c_end) = lstm(inputs[0], (inputs[1], inputs[2]), *weights)
    mine = [x.clone().requires_grad_(), h.clone().requires_grad_(), c.clone().requires_grad_()]
    expected, (h_last, c_last) = theirs(mine[0], (mine[1][None], mine[2][None]))
    for ours, right in ((out, expected), (h_end, h_last[0]), (c_end, c_last[0])):
        torch.testing.assert_close(ours, right)
    weigh = torch.randn_like(out)
    ((out * weigh).sum() + (h_end * c_end).sum()).backward()
    ((expected * weigh).sum() + (h_last * c_last).sum()).backward()
    for ours, right in zip([*inputs, *weights], [*mine, *theirs.parameters()], strict=True):
        torch.testing.assert_close(ours.grad, right.grad)


@pytest.mark.parametrize("lengths", [None, [6, 0, 3]])
def test_torchs_own_kernel_on_other_devices_reads_the_same(lengths: list[int] | None) -> None:
    """It runs on the CPU too, so it can be held against ours; rows of different lengths, one of them empty."""
    torch.manual_seed(0)
    x, state = torch.randn(6, 3, 5), (torch.randn(3, 4), torch.randn(3, 4))
    weights = tuple(p.detach() for p in nn.LSTM(5, 4).parameters())
    steps = None if lengths is None else torch.tensor(lengths)
    ours, ends = lstm(x, state, *weights, steps)
    theirs, their_ends = _torch_lstm(x, state, weights, steps)
    for row in range(3):
        read = 6 if lengths is None else lengths[row]
        torch.testing.assert_close(theirs[:read, row], ours[:read, row])
    for mine, other in zip(ends, their_ends, strict=True):
        torch.testing.assert_close(other, mine)


def test_frozen_weights_cost_no_gradient() -> None:
    layer = tiny(AwdLstmModel).layers[1]
    layer.weight_hh.requires_grad_(False)
    x = torch.randn(4, 2, 12, requires_grad=True)
    out, _ = layer(x, (torch.zeros(2, 12), torch.zeros(2, 12)))
    out.sum().backward()
    assert layer.weight_hh.grad is None
    assert float(layer.weight_ih.grad.abs().sum()) > 0
    assert float(x.grad.abs().sum()) > 0


def test_bfloat16_products_stay_close() -> None:
    model, text = tiny(), ids()
    exact = model(text).logits.detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(text).logits
    assert half.dtype == torch.bfloat16
    assert 0 < float((half.float() - exact).abs().max()) < 0.02


# -- dropouts --------------------------------------------------------------------------------------------------------
def test_locked_dropout_is_the_same_at_every_step() -> None:
    torch.manual_seed(0)
    x = torch.ones(5, 3, 200)
    out = locked(x, 0.5, True)
    assert torch.equal(out, out[:1].expand_as(out))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(out[0, 0], out[0, 1]), "each row has a mask of its own"
    assert locked(x, 0.5, False) is x


@pytest.mark.parametrize(
    "name", ["output_dropout", "hidden_dropout", "input_dropout", "embedding_dropout", "weight_dropout"]
)
def test_each_dropout_acts_in_training_alone(name: str) -> None:
    model, text = tiny(AwdLstmModel), ids()
    set_rates(
        model,
        dict.fromkeys(
            ("output_dropout", "hidden_dropout", "input_dropout", "embedding_dropout", "weight_dropout"), 0.0
        ),
    )
    still = model(text).last_hidden_state
    assert torch.equal(model.train()(text).last_hidden_state, still)
    set_rates(model, {name: 0.5})
    assert getattr(model.config, name) == 0.5
    torch.manual_seed(1)
    first, second = (model(text) for _ in range(2))
    assert not torch.equal(first.last_hidden_state, second.last_hidden_state), "a fresh mask for each call"
    changes_raw = name != "output_dropout"
    assert torch.equal(first.raw, still) != changes_raw
    assert torch.equal(model.eval()(text).last_hidden_state, still)


def test_word_types_fall_whole() -> None:
    model = tiny(AwdLstmModel, embedding_dropout=0.5).train()
    torch.manual_seed(2)
    text = torch.tensor([[5, 6, 5, 7, 6, 5]])
    vectors = model.embeddings(text)[0]
    plain = model.embeddings.weight[text[0]]
    ratio = (vectors / plain).round(decimals=3)
    assert all(row.unique().numel() == 1 and row[0] in (0.0, 2.0) for row in ratio)
    assert torch.equal(ratio[0], ratio[2])
    assert torch.equal(ratio[1], ratio[4])


# -- padding and state ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padded_rows_read_what_they_read_alone(side: str) -> None:
    model = tiny(AwdLstmModel)
    text = ids(1, 6)
    before, after = {"left": (3, 0), "right": (0, 3), "both": (2, 1)}[side]
    padded = torch.nn.functional.pad(text, (before, after), value=1)
    mask = torch.nn.functional.pad(torch.ones_like(text), (before, after))
    other = ids(1, 9)
    start = model(ids(2, 4), use_cache=True).past_key_values
    both = model(
        torch.cat([padded, other]),
        attention_mask=torch.cat([mask, torch.ones_like(other)]),
        past_key_values=start,
        use_cache=True,
    )
    alone = model(text, past_key_values=start.select(torch.tensor([0])), use_cache=True)
    torch.testing.assert_close(both.last_hidden_state[0, before : before + 6], alone.last_hidden_state[0])
    assert not both.last_hidden_state[0][mask[0] == 0].any()
    for (h, c), (h_alone, c_alone) in zip(both.past_key_values.layers, alone.past_key_values.layers, strict=True):
        torch.testing.assert_close(h[:1], h_alone)
        torch.testing.assert_close(c[:1], c_alone)


def test_the_state_carries_over_and_is_never_changed() -> None:
    model, text = tiny(), ids(2, 12)
    whole = model(text).logits
    first = model(text[:, :5], use_cache=True)
    kept = [(h.clone(), c.clone()) for h, c in first.past_key_values.layers]
    second = model(text[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole)
    assert second.past_key_values.get_seq_length() == 12
    for (h, c), (h0, c0) in zip(first.past_key_values.layers, kept, strict=True):
        assert torch.equal(h, h0)
        assert torch.equal(c, c0)
    with pytest.raises(EunoeError, match=r"is of 2 rows, the text has 3"):
        model(ids(3), past_key_values=first.past_key_values)
    with pytest.raises(EunoeError, match=r"layers \[12, 12, 8\] wide, the model's are \[6, 6, 8\]"):
        tiny(cell_size=6)(text, past_key_values=first.past_key_values)


# -- the classifier ------------------------------------------------------------------------------------------------
def test_concat_pool_by_hand() -> None:
    states = torch.tensor([[[1.0, 5.0], [3.0, 1.0], [9.0, 9.0]], [[7.0, 7.0], [2.0, 4.0], [4.0, 0.0]]])
    pooled = concat_pool(states, torch.tensor([[1, 1, 0], [0, 1, 1]]))
    assert pooled.tolist() == [[3, 1, 3, 5, 2, 3], [4, 0, 4, 4, 3, 2]]
    assert concat_pool(states, torch.zeros(2, 3)).tolist() == [[0.0] * 6] * 2


def test_the_classifier_reads_rows_as_alone_and_pools_the_last_tokens() -> None:
    model = tiny(AwdLstmForSequenceClassification, num_labels=3, chunk=4, pooled=6)
    text = ids(1, 11)
    alone = model(text).logits
    for before, after in ((3, 0), (0, 5), (2, 2)):
        padded = torch.nn.functional.pad(text, (before, after), value=1)
        torch.testing.assert_close(model(padded).logits, alone)
    changed = text.clone()
    changed[0, 0] = 39 if text[0, 0] != 39 else 38
    assert not torch.equal(model(changed).logits, alone), "what is not pooled is read all the same"
    assert model(text).hidden.shape == (1, 6, 8)


def test_a_classifier_learns_and_no_gradient_leaves_a_chunk_but_by_pooling() -> None:
    model = tiny(
        AwdLstmForSequenceClassification,
        num_labels=2,
        chunk=4,
        pooled=4,
        output_dropout=0.0,
        input_dropout=0.0,
        embedding_dropout=0.0,
    )
    text = torch.tensor([[10, 11, 12, 13, 20, 21, 22, 23]])
    model(text, labels=torch.tensor([1])).loss.backward()
    rows = model.transformer.embeddings.weight.grad.abs().sum(1)
    assert set(rows.nonzero().flatten().tolist()) == {20, 21, 22, 23}


# -- Hugging Face --------------------------------------------------------------------------------------------------
def test_it_is_saved_and_loaded_tied(tmp_path: Path) -> None:
    register()
    register()
    model, text = tiny(), ids()
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    back = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert back.lm_head.weight is back.transformer.embeddings.weight
    assert torch.equal(back(text).logits, model(text).logits)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(trunk(text)[0], model.transformer(text)[0])
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert classifier(text).logits.shape == (3, 3)
    assert torch.equal(classifier.transformer.embeddings.weight, model.transformer.embeddings.weight)


def test_a_loaded_model_has_fresh_weights_where_the_files_have_none(tmp_path: Path) -> None:
    tiny(AwdLstmModel).save_pretrained(tmp_path)
    back = AwdLstmForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert all(p.isfinite().all() for p in back.parameters())
    assert float(back.head.norm_in.weight.detach().min()) == 1.0


def test_the_vocabulary_can_grow_and_stays_tied() -> None:
    model = tiny()
    before = model.transformer.embeddings.weight.detach().clone()
    model.resize_token_embeddings(50, mean_resizing=False)
    assert model.lm_head.weight is model.transformer.embeddings.weight
    assert model.lm_head.bias.shape == (50,)
    assert torch.equal(model.transformer.embeddings.weight[:40], before)
    assert model.train()(torch.tensor([[45, 49]])).logits.shape == (1, 2, 50)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_carries_the_state(beams: int) -> None:
    """Token by token as if the whole text were read each time; prompts of two lengths, padded on the left."""
    model = tiny()
    with torch.no_grad():
        model.lm_head.bias.normal_(0, 2.0)
    text = ids(2, 5)
    text[1, :2] = 1
    mask = (text != 1).long()
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    carried = model.generate(text, attention_mask=mask, **settings)
    anew = model.generate(text, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(carried, anew)
    alone = model.generate(text[1:, 2:], **settings)
    assert torch.equal(carried[1, 2:], alone[0])


def test_the_loss_is_of_the_next_tokens() -> None:
    model, text = tiny(), ids()
    out = model(text, labels=text)
    logits = out.logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(logits, text[:, 1:].flatten()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell_size": 0}, "cell_size of an AWD-LSTM is 0"),
        ({"weight_dropout": 1.0}, r"weight_dropout is 1.0; a dropout rate is a number from 0"),
        ({"padding": "left"}, r"padding is 'left'; allowed: exact, fastai"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        AwdLstmConfig(**change)


def test_what_is_no_dropout_of_it_is_refused() -> None:
    with pytest.raises(EunoeError, match=r"dropout: no dropout of an AWD-LSTM\. Allowed: output_dropout"):
        set_rates(tiny(), {"dropout": 0.1})
    with pytest.raises(EunoeError, match="has no AWD-LSTM inside"):
        set_rates(nn.Linear(1, 1), {"input_dropout": 0.1})
