"""What stands around an AWD-LSTM: words, vocabulary, loss, sampled softmax, cache pointer, fastai's files, its place among models."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, Trainer, TrainingArguments

from eunoe.data.collate import encode_rows
from eunoe.data.tokens import around, encode, identity
from eunoe.errors import EunoeError
from eunoe.evaluate.answers import answer, refuse_unanswerable
from eunoe.models.anatomy import anatomy
from eunoe.models.awd import register
from eunoe.models.awd.classifier import AwdLstmForSequenceClassification
from eunoe.models.awd.config import AwdLstmConfig
from eunoe.models.awd.fastai import from_fastai, load_fastai, read_vocabulary, to_fastai
from eunoe.models.awd.loss import AwdLoss, Carry, linear_cross_entropy, zipf_sample
from eunoe.models.awd.model import AwdLstmForCausalLM
from eunoe.models.awd.pointer import mix, pointer_loss
from eunoe.models.awd.tokenizer import AwdLstmTokenizer
from eunoe.models.awd.vocabulary import remap
from eunoe.models.awd.words import SPECIAL, prepared, split
from eunoe.models.load import load_lm
from eunoe.plugins.inject import inject
from eunoe.recipe import ModelSettings

SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 8, "cell_size": 12}
TEXTS = ["A good film.", "A BAD film!!!! It's wow wow wow wow nice"]


def tiny(**change: Any) -> AwdLstmForCausalLM:
    torch.manual_seed(0)
    return AwdLstmForCausalLM(AwdLstmConfig(**{**SMALL, **change})).eval()


def folder(tmp_path: Path, **change: Any) -> Path:
    tokenizer = AwdLstmTokenizer.build(TEXTS, least=1)
    tiny(vocab_size=len(tokenizer), **change).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


# -- words ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I LOVE it!!!", "i xxup love it xxrep 3 !"),  # a run of capitals ends at white space, as in fastai
        ("so so so so good", "xxwrep 4 so good"),
        ("Don't stop<br />now", "xxmaj do n't stop \n now"),
        ("A well-known U.S. film (1987) / 7,5", "a well - known xxup u.s. film ( 1987 ) / 7,5"),
        ("&lt;unk&gt; cost #36;5", "< unk > cost $ 5"),
        ("<unk> is", "xxunk is"),
    ],
)
def test_words_by_hand(text: str, words: str) -> None:
    assert split(prepared(text)) == words.split(" ")


def test_a_tokenizer_is_saved_and_loaded_and_reads_the_same(tmp_path: Path) -> None:
    register()
    tokenizer = AwdLstmTokenizer.build(TEXTS, least=1)
    assert tokenizer.tokens[: len(SPECIAL)] == list(SPECIAL)
    back = AutoTokenizer.from_pretrained(folder(tmp_path))
    assert isinstance(back, AwdLstmTokenizer)
    assert back.tokens == tokenizer.tokens
    assert identity(back) == identity(AutoTokenizer.from_pretrained(tmp_path))
    text = "The BAD BAD film !!!! wow wow wow"
    coded = back(text)["input_ids"]
    assert coded == tokenizer(text)["input_ids"]
    assert coded[0] == back.bos_token_id == 2
    assert back.decode(coded, skip_special_tokens=False).startswith("xxbos")
    assert back.decode(back("A BAD film !!!!")["input_ids"][1:]) == "a BAD film !!!!"
    padded = back(["a film", "a"], padding=True)
    assert padded["input_ids"][1][0] == back.pad_token_id == 1
    assert padded["attention_mask"][1] == [0, 1, 1]
    assert around(back) == ([2], [])


def test_doubled_rows_keep_their_place() -> None:
    tokenizer = AwdLstmTokenizer(vocab=[*SPECIAL, "a", "xxfake", "xxfake"])
    assert tokenizer.vocab_size == 12
    assert tokenizer.convert_ids_to_tokens([10, 11]) == ["xxfake", "xxfake"]


def test_a_backward_model_reads_text_from_its_end(tmp_path: Path) -> None:
    lm = load_lm(ModelSettings(name=str(folder(tmp_path, backward=True))))
    forward = AwdLstmTokenizer(str(tmp_path / "vocab.json"))
    text = "a good film"
    (turned,) = encode([text], lm.tokenizer, "testing")
    (straight,) = encode([text], forward, "testing")
    assert turned == straight[::-1]
    assert turned[-1] == 2
    with pytest.raises(EunoeError, match="reads text from its end: it knows what stood before"):
        refuse_unanswerable(lm, ["a good"], 4, "recipe.evaluation")
    rows = encode_rows(lm.tokenizer, [(text, None)], [0], 16)
    assert rows.inputs[0]["input_ids"] == turned
    assert identity(lm.tokenizer) != identity(forward)


def test_vocabularies_that_cannot_be_are_refused(tmp_path: Path) -> None:
    itos = tmp_path / "itos.pkl"
    itos.write_bytes(pickle.dumps(["a"]))
    with pytest.raises(
        EunoeError, match=r"itos.pkl is a pickle: reading one runs what is in it.*json.dump\(list\(pickle.load"
    ):
        read_vocabulary(itos)
    wrong = tmp_path / "vocab.json"
    wrong.write_text('["a", 3]')
    with pytest.raises(EunoeError, match="is not a JSON list of tokens"):
        read_vocabulary(wrong)
    wrong.write_text('["a", "b"]')
    with pytest.raises(EunoeError, match="of 2 tokens lacks xxunk, xxpad, xxbos"):
        AwdLstmTokenizer(str(wrong))
    wrong.write_text(json.dumps({"b": 1, "a": 0}))
    assert read_vocabulary(wrong) == ["a", "b"]
    with pytest.raises(EunoeError, match="needs the package spaCy"):
        AwdLstmTokenizer(vocab=SPECIAL, spacy=True)
    with pytest.raises(EunoeError, match="a vocabulary of 9 tokens has no place for a word"):
        AwdLstmTokenizer.build(TEXTS, largest=9)


# -- another vocabulary ----------------------------------------------------------------------------------------------
def test_known_words_keep_their_rows_and_others_get_the_mean() -> None:
    model = tiny(vocab_size=4)
    rows, bias = model.transformer.embeddings.weight.detach().clone(), torch.arange(4.0)
    with torch.no_grad():
        model.lm_head.bias.copy_(bias)
    assert remap(model, {"a": 0, "b": 1, "c": 2, "d": 3}, {"d": 0, "new": 1, "a": 2, "b": 3, "other": 4}) == 3
    now = model.transformer.embeddings.weight
    assert model.lm_head.weight is now
    assert model.config.vocab_size == 5
    mean = rows.mean(0)
    torch.testing.assert_close(now.detach(), torch.stack([rows[3], mean, rows[0], rows[1], mean]))
    assert model.lm_head.bias.tolist() == [3.0, 1.5, 0.0, 1.0, 1.5]
    with pytest.raises(EunoeError, match=r"tokens up to row 7, but the weights have 5 rows"):
        remap(model, {"a": 7}, {"a": 0})
    with pytest.raises(EunoeError, match="no token of the new vocabulary is known"):
        remap(model, {"a": 0}, {"z": 0})


# -- the loss --------------------------------------------------------------------------------------------------------
def test_linear_cross_entropy_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.models.awd.loss._AT_ONCE", 12)  # several rows at a time
    torch.manual_seed(0)
    inputs = [
        torch.randn(7, 3, dtype=torch.float64),
        torch.randn(5, 3, dtype=torch.float64),
        torch.randn(5, dtype=torch.float64),
    ]
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    ours = [x.clone().requires_grad_() for x in inputs]
    right = [x.clone().requires_grad_() for x in inputs]
    mine = linear_cross_entropy(*ours, labels)
    expected = F.cross_entropy(F.linear(*right), labels, reduction="sum")
    torch.testing.assert_close(mine, expected)
    (2 * mine).backward()
    (2 * expected).backward()
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_ar_and_tar_by_the_formula() -> None:
    model = tiny()
    ids = torch.randint(3, 40, (2, 6))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    read = model.transformer(batch["input_ids"])
    plain = AwdLoss(alpha=0.0, beta=0.0)(model, batch)
    assert plain.items == 10
    torch.testing.assert_close(plain.total, 10 * model(ids, labels=ids).loss)
    both = AwdLoss(alpha=2.0, beta=3.0)(model, batch).total
    h = read.raw
    expected = plain.total + 10 * (2.0 * h.pow(2).mean() + 3.0 * (h[:, 1:] - h[:, :-1]).pow(2).mean())
    torch.testing.assert_close(both, expected)


def test_the_state_is_carried_detached_and_forgotten_at_a_start() -> None:
    model, carry = tiny(), Carry()
    ids = torch.randint(3, 40, (2, 9))
    first = {"input_ids": ids[:, :4], "labels": ids[:, 1:5], "start": torch.tensor(True)}
    second = {"input_ids": ids[:, 4:8], "labels": ids[:, 5:], "start": torch.tensor(False)}
    loss = AwdLoss(carry, 0.0, 0.0)
    together = loss(model, first).total + loss(model, second).total
    assert carry.state is not None
    assert not carry.state[0][0].requires_grad
    torch.testing.assert_close(together, 16 * model(ids, labels=ids).loss)
    saved = Carry()
    saved.load_state_dict(carry.state_dict())
    assert all(
        torch.equal(a, b)
        for x, y in zip(saved.state.layers, carry.state.layers, strict=True)
        for a, b in zip(x, y, strict=True)
    )  # type: ignore[union-attr]
    torch.testing.assert_close(loss(model, first).total, AwdLoss(None, 0.0, 0.0)(model, first).total)


def test_a_sample_is_log_uniform_and_its_correction_right_on_average() -> None:
    torch.manual_seed(0)
    seen = torch.zeros(50)
    for _ in range(2000):
        sample, chances = zipf_sample(50, 10)
        assert sample.unique().numel() == 10
        seen[sample] += 1
    assert float(chances.sum()) == pytest.approx(10, abs=1e-3)
    assert float((seen / 2000 - chances).abs().max()) < 0.03
    assert float(chances[0]) > 3 * float(chances[40])


def test_a_sampled_softmax_gives_nearly_the_whole_ones_gradient() -> None:
    """Averaged over draws; a target that was not drawn is compared in its own row alone."""
    model = tiny(vocab_size=200)
    with torch.no_grad():
        model.transformer.embeddings.weight.mul_(5)
    ids = torch.randint(9, 200, (4, 9), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}

    def gradient(sampled: int | None) -> torch.Tensor:
        model.zero_grad()
        AwdLoss(None, 0.0, 0.0, sampled)(model, batch).total.backward()
        return model.transformer.layers[2].weight_ih.grad.flatten().clone()  # type: ignore[union-attr, operator]

    whole = gradient(None)
    torch.manual_seed(0)
    mean = torch.stack([gradient(100) for _ in range(40)]).mean(0)
    assert float(F.cosine_similarity(mean, whole, dim=0)) > 0.98
    assert float(mean.norm() / whole.norm()) == pytest.approx(1.0, abs=0.1)
    with pytest.raises(EunoeError, match="sampled is 200, but the vocabulary has 200 words"):
        gradient(200)


# -- the cache --------------------------------------------------------------------------------------------------------
def test_the_cache_by_hand() -> None:
    """Two positions after one in the cache; theta 1, states of width 1."""
    states, targets, chances = torch.tensor([[1.0], [2.0]]), torch.tensor([7, 5]), torch.tensor([0.1, 0.2])
    keys, words = torch.tensor([[3.0]]), torch.tensor([7])
    mixed = mix(states, targets, chances, keys, words, window=5, theta=1.0, share=0.25)
    assert mixed[0] == pytest.approx(0.75 * 0.1 + 0.25 * 1.0)  # one place in the cache, and the word is its word
    assert mixed[1] == pytest.approx(0.75 * 0.2)  # neither 7 is a 5
    again = mix(states, torch.tensor([7, 7]), chances, keys, words, window=1, theta=1.0, share=0.25)
    assert again[1] == pytest.approx(0.75 * 0.2 + 0.25)  # a window of one sees the position before
    wide = mix(states, torch.tensor([5, 7]), chances, keys, words, window=2, theta=1.0, share=0.25)
    shares = torch.tensor([2.0 * 3.0, 2.0 * 1.0]).softmax(0)
    assert wide[1] == pytest.approx(float(0.75 * 0.2 + 0.25 * shares[0]))
    assert mix(states[:1], targets[:1], chances[:1], keys[:0], words[:0], window=2, theta=1.0, share=0.25)[
        0
    ] == pytest.approx(0.1)


def test_the_cache_lowers_the_loss_of_text_that_repeats_and_pieces_do_not_matter() -> None:
    model = tiny()
    ids = torch.randint(9, 40, (12,), generator=torch.Generator().manual_seed(3)).repeat(6)
    settings = {"window": 30, "theta": 30.0, "share": 0.3}
    with_cache = pointer_loss(model, ids, **settings)  # type: ignore[arg-type]
    assert with_cache < float(model(ids[None], labels=ids[None]).loss.detach()) - 0.2
    assert pointer_loss(model, ids, piece=7, **settings) == pytest.approx(with_cache, abs=1e-5)  # type: ignore[arg-type]


# -- fastai's files -------------------------------------------------------------------------------------------------
def test_fastais_files_load_as_tensors_alone(tmp_path: Path) -> None:
    model = tiny()
    torch.save({"model": to_fastai(model), "opt": {"lr": 1}}, tmp_path / "lm.pth")
    back = load_fastai(tmp_path / "lm.pth", backward=True)
    ids = torch.randint(3, 40, (2, 5))
    assert torch.equal(back(ids).logits, model(ids).logits)
    assert back.config.backward

    class Runs:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"0.encoder.weight": Runs()}, tmp_path / "bad.pth")
    with pytest.raises(EunoeError, match=r"the fastai weights .*bad.pth"):
        load_fastai(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_size_or_kind_are_refused(tmp_path: Path) -> None:
    state = to_fastai(tiny())
    torch.save(state, tmp_path / "lm.pth")
    with pytest.raises(EunoeError, match=r"do not fit the configuration: .*\(40, 8\) where \(41, 8\) is expected"):
        load_fastai(tmp_path / "lm.pth", vocab_size=41)
    with pytest.raises(EunoeError, match=r"0.encoder.bias is no weight of a fastai AWD-LSTM"):
        from_fastai({"0.encoder.bias": torch.ones(1)})
    with pytest.raises(EunoeError, match=r"two different tensors for transformer\.embeddings\.weight"):
        from_fastai({**state, "1.decoder.weight": state["0.encoder.weight"] + 1})
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(EunoeError, match="does not hold named tensors"):
        load_fastai(tmp_path / "list.pth")


# -- among models ----------------------------------------------------------------------------------------------------
def test_it_is_a_model_like_any_other(tmp_path: Path) -> None:
    lm = load_lm(ModelSettings(name=str(folder(tmp_path)), dropout=0.0))
    assert lm.objective == "causal"
    assert lm.positions is None
    assert lm.model.config.weight_dropout == 0.0
    assert lm.model.transformer.layers[0].dropout == 0.0
    refuse_unanswerable(lm, ["a good"], 4, "recipe.evaluation")
    assert isinstance(answer(lm, "a good", 4), str)
    parts = anatomy(lm.model)
    assert [layer.name for layer in parts.layers] == ["layers.0", "layers.1", "layers.2"]
    assert parts.width == 8
    with pytest.raises(EunoeError, match=r"AwdLstmLayer is a recurrent layer: .*no attention_out for a plug-in.*ewc"):
        inject(lm.model, parts, lambda site: None)  # type: ignore[arg-type, return-value]


def test_the_trainer_trains_and_scores_it(tmp_path: Path) -> None:
    """The language model and the classifier; a last batch of one row, in training and in scoring."""
    args = TrainingArguments(str(tmp_path), max_steps=4, per_device_train_batch_size=2, per_device_eval_batch_size=2, use_cpu=True,
                             report_to="none", disable_tqdm=True, save_strategy="no")  # fmt: skip
    rows = [{"input_ids": [2, 5 + i, 6, 7], "labels": [2, 5 + i, 6, 7]} for i in range(3)]
    scored = Trainer(tiny(), args, train_dataset=rows, eval_dataset=rows)
    scored.train()
    assert math.isfinite(scored.evaluate()["eval_loss"])
    config = AwdLstmConfig(vocab_size=12, hidden_size=8, cell_size=10, num_labels=2)
    labelled = [{"input_ids": [2, 5 + i, 6, 7], "labels": i % 2} for i in range(3)]
    trainer = Trainer(AwdLstmForSequenceClassification(config), args, train_dataset=labelled, eval_dataset=labelled)
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert trainer.predict(labelled).predictions.shape == (3, 2)


def test_a_vocabulary_larger_than_the_weights_is_refused(tmp_path: Path) -> None:
    tokenizer = AwdLstmTokenizer.build(TEXTS, least=1)
    tiny(vocab_size=len(tokenizer) - 2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        EunoeError, match=rf"has {len(tokenizer)} tokens, but the model's embedding has {len(tokenizer) - 2} rows"
    ):
        load_lm(ModelSettings(name=str(tmp_path)))
