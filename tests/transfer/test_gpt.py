"""GPT-1's fine-tuning: its four forms of a row, both heads against transformers' own, L3 by hand, ablations, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import OpenAIGPTConfig, OpenAIGPTDoubleHeadsModel, OpenAIGPTLMHeadModel

from eunoe import checkpoint
from eunoe.data.collate import pad_rows
from eunoe.data.tasks import Example, Task
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import eval_batches
from eunoe.evaluate.retention import Retention
from eunoe.methods.base import Method
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import only_positions
from eunoe.models.load import LanguageModel, load_lm
from eunoe.models.vocabulary import add_words
from eunoe.progress import say_once
from eunoe.recipe import ModelSettings
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.gpt import DoubleHead, GptLoss, GptSettings, check, encode, gpt, resolve
from tests.conftest import shared
from tests.models.families import tiny
from tests.tiny import WORDS, size, tiny_bert, tiny_causal_tokenizer, tiny_gpt2, tiny_llama, tiny_tokenizer


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)


def language_model(kind: str = "gpt2", **change: Any) -> LanguageModel:
    made = {
        "gpt2": lambda: tiny_gpt2(initializer_range=0.3, **change),
        "llama": lambda: tiny_llama(initializer_range=0.3, **change),
        "gpt_neox": lambda: tiny("gpt_neox", vocab_size=size(), initializer_range=0.3, max_position_embeddings=128),
    }[kind]()
    return LanguageModel(made.eval(), tiny_causal_tokenizer(), "causal", f"tiny {kind}")


def task(kind: str = "classification", pair: bool = False, n: int = 32, **more: Any) -> Task:
    """The first word (good or bad) tells: as a class, as a number, or as the right choice."""

    def row(i: int) -> Example:
        word, other = ("good", "bad") if i % 2 else ("bad", "good")
        second = WORDS[i + 5] if pair else None
        if kind == "choice":
            place = (i // 2) % 2
            return Example(f"{word} {WORDS[i]}", second, place, (word, other) if place == 0 else (other, word))
        label: str | float = word if kind == "classification" else float(i % 2)
        return Example(f"{word} {WORDS[i]} {WORDS[i + 3]}", second, label)

    labels = ("bad", "good") if kind == "classification" else ()
    return Task("made", kind, labels, tuple(map(row, range(n))), tuple(map(row, range(n, n + 8))), None, **more)


def quick(**change: Any) -> GptSettings:
    return GptSettings(**{"batch": 8, "epochs": 12, "lr": 0.01, "max_length": 16, "dropout": 0.0, **change})


def start(lm: LanguageModel, given: Task, **more: Any) -> Start:
    """Another seed than the tiny models', or a fresh model would be the pretrained one."""
    return Start(lm=lm, method=Method(lm.model, None, []), domain=None, task=given, seed=1, batch=4, **more)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# -- against transformers' own model, and by hand -----------------------------------------------------------------------
def double_head(lengths: tuple[int, ...]) -> tuple[DoubleHead, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
                             attn_pdrop=0, initializer_range=0.3)  # fmt: skip
    lm = OpenAIGPTLMHeadModel(config).eval()
    add_words(lm, 3)
    model = DoubleHead(lm, 1, 2, False, 0.0)
    ids = torch.randint(0, 40, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return model, {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.tensor([1, 0])}


def test_both_heads_and_losses_are_those_of_the_double_head_model_of_transformers() -> None:
    model, batch = double_head((9, 9, 9, 9))
    batch["input_ids"][:, 0], batch["input_ids"][:, -1] = 40, 42
    config = OpenAIGPTConfig(vocab_size=43, n_positions=32, n_embd=16, n_layer=2, n_head=2, num_labels=1)
    theirs = OpenAIGPTDoubleHeadsModel(config).eval()
    theirs.transformer.load_state_dict(model.trunk.state_dict())
    theirs.tie_weights()
    theirs.multiple_choice_head.summary.load_state_dict(model.out.state_dict())
    ids = batch["input_ids"].view(2, 2, 9)
    with torch.no_grad():
        expected = theirs(ids, mc_token_ids=torch.full((2, 2), 8), labels=ids, mc_labels=batch["labels"])
        with only_positions(model.lm, torch.arange(4 * 9)):
            logits = model.lm(input_ids=batch["input_ids"]).logits
        choice, lm = model(batch["input_ids"], batch["attention_mask"], with_lm=True)
        loss = GptLoss(0.5)(model, batch)
    torch.testing.assert_close(logits.view(2, 2, 9, 43), expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(choice.view(2, 2), expected.mc_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(lm.mean(), expected.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.total / 2, expected.mc_loss + 0.5 * expected.loss, atol=1e-5, rtol=0)


def test_the_lm_loss_is_the_mean_over_sequences_of_the_mean_over_their_tokens() -> None:
    """As in the release: a long choice weighs no more than a short one. Token by token, each sequence alone, unpadded."""
    model, batch = double_head((9, 4, 6, 2))
    with torch.no_grad():
        actual = GptLoss(0.5)(model, batch)
        without = GptLoss(0.0)(model, batch)
        means, scores = [], []
        for ids, length in zip(batch["input_ids"], (9, 4, 6, 2), strict=True):
            out = model.lm(input_ids=ids[None, :length], output_hidden_states=True)
            means.append(F.cross_entropy(out.logits[0, :-1], ids[1:length]))
            scores.append(model.out(out.hidden_states[-1][0, -1])[0])
        label = F.cross_entropy(torch.stack(scores).view(2, 2), batch["labels"], reduction="sum")
        lm = (means[0] + means[1]) / 2 + (means[2] + means[3]) / 2
    torch.testing.assert_close(without.total, label, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.total, label + 0.5 * lm, atol=1e-5, rtol=0)
    assert actual.items == 2


# -- new words, on a copy -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("tied", [True, False])
def test_new_words_leave_every_other_row_and_tied_heads_as_they_were(kind: str, tied: bool) -> None:
    model = tiny(kind, tie_word_embeddings=tied)
    table, head = anatomy(model).embeddings, model.get_output_embeddings()
    rows, out, before = table.weight.detach().clone(), head.weight.detach().clone(), bits(model)
    ids = torch.arange(6)[None]
    logits = model(input_ids=ids).logits
    assert add_words(model, 3) == [40, 41, 42]
    assert torch.equal(table.weight[:40], rows)
    assert torch.equal(head.weight[:40], out)
    assert (head.weight is table.weight) == tied
    assert len(head.weight) == len(table.weight) == 43
    assert torch.equal(model(input_ids=ids).logits[..., :40], logits)
    assert same(model, {**before, **{n: p for n, p in model.named_parameters() if len(p) == 43}})
    assert 0.01 < float(table.weight[40:].detach().std()) < 0.04


def test_the_rows_of_each_kind_of_task() -> None:
    lm = language_model()
    start_id, delimiter, extract = size(), size() + 1, size() + 2
    word = {w: lm.tokenizer.convert_tokens_to_ids(w) for w in ("goal", "film", "song", "score")}

    def ids(given: Task, **change: Any) -> list[list[int]]:
        return [row["input_ids"] for row in encode(lm, given, given.train, quick(**change)).inputs]

    one = Task("t", "classification", ("a", "b"), (Example("goal film", None, "a"),), (), None)
    assert ids(one) == [[start_id, word["goal"], word["film"], extract]]
    assert ids(one, max_length=3) == [[start_id, word["goal"], extract]]
    two = Task("t", "classification", ("a", "b"), (Example("goal goal goal", "film", "a"),), (), None)
    first = [start_id, *[word["goal"]] * 3, delimiter, word["film"], extract]
    assert ids(two) == [first]
    assert ids(two, max_length=5) == [[start_id, word["goal"], delimiter, word["film"], extract]]
    both = [first, [start_id, word["film"], delimiter, *[word["goal"]] * 3, extract]]
    assert ids(two, both_orders=True) == both
    assert ids(Task("t", "regression", (), (Example("goal goal goal", "film", 1.5),), (), None)) == both
    symmetric = Task("t", "classification", ("a", "b"), two.train, (), None, symmetric=True)
    assert ids(symmetric) == both
    assert ids(symmetric, both_orders=False) == [first]
    choice = Task("t", "choice", (), (Example("goal goal", "film", 0, ("song", "score score")),), (), None)
    assert ids(choice) == [
        [start_id, word["goal"], word["goal"], word["film"], delimiter, word["song"], extract],
        [start_id, word["goal"], word["goal"], word["film"], delimiter, word["score"], word["score"], extract],
    ]
    assert ids(choice, max_length=7)[1] == [
        start_id, word["goal"], word["film"], delimiter, word["score"], word["score"], extract,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("form", ["classification", "pair", "regression", "choice"])
def test_each_kind_of_task_is_learnt_and_the_model_stays_as_it_was(kind: str, form: str) -> None:
    lm = language_model(kind)
    given = task("classification" if form == "pair" else form, pair=form in ("pair", "regression"))
    before, vocabulary = bits(lm.model), lm.tokenizer.get_vocab()
    tuned = gpt(start(lm, given), quick(epochs=30))
    metric, value = ("pearson", 0.8) if form == "regression" else ("accuracy", 0.99)
    assert {s.metric: s.value for s in tuned.scores}[metric] > value
    assert same(lm.model, before)
    assert lm.tokenizer.get_vocab() == vocabulary
    answers = tuned.predict(given.test)
    if form != "regression":
        assert answers == [e.label for e in given.test]
    else:
        swapped = tuned.predict([Example(str(e.pair), e.text, e.label) for e in given.test])
        assert swapped == pytest.approx(answers, abs=1e-5), "the order of similar texts means nothing"


def test_a_second_use_ends_as_the_first() -> None:
    lm, given = language_model(), task()
    one, two = (gpt(start(lm, given), quick(epochs=2)) for _ in range(2))
    assert one.scores == two.scores
    assert one.curve_csv() == two.curve_csv()


def test_micro_batches_and_padding_change_nothing_but_rounding() -> None:
    lm, given = language_model(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), task("choice")
    curves = [gpt(start(lm, given), quick(steps=3, micro_batch=m)).phases["finetune"].curve for m in (None, 2)]
    assert [c[1] for c in curves[0]] == pytest.approx([c[1] for c in curves[1]], rel=1e-3)


def test_choices_of_a_row_share_what_is_dropped() -> None:
    torch.manual_seed(0)
    model = DoubleHead(tiny_gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), 1, 2, False, 0.5).train()
    ids = torch.arange(5).repeat(4, 1)
    scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).view(2, 2)
    assert torch.equal(scores[:, 0], scores[:, 1])
    assert scores[0, 0] != scores[1, 0]


# -- ablations ----------------------------------------------------------------------------------------------------------
def test_without_the_auxiliary_objective_an_untied_lm_head_is_never_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[DoubleHead] = []
    own = DoubleHead.__init__

    def noted(self: DoubleHead, *args: Any) -> None:
        own(self, *args)
        made.append(self)

    monkeypatch.setattr(DoubleHead, "__init__", noted)
    lm = language_model("llama", tie_word_embeddings=False)
    head = lm.model.get_output_embeddings().weight.detach().clone()
    for weight in (0.0, 0.5):
        gpt(start(lm, task()), quick(steps=2, lm_weight=weight, optimizer={"name": "adamw", "weight_decay": 0.0}))
        assert torch.equal(made[-1].lm.get_output_embeddings().weight[: size()], head) == (weight == 0.0)


def test_layers_above_those_transferred_start_afresh_and_without_pretraining_all_do() -> None:
    lm = language_model("llama", tie_word_embeddings=False)
    own = dict(anatomy(lm.model).base.named_parameters())
    still: dict[Any, set[str]] = {}
    for change in ({"transferred": 1}, {"transferred": 0}, {"start": "random"}, {"transferred": 2}):
        # one step so small that what is seen is the start
        trunk = gpt(start(lm, task()), quick(steps=1, lr=1e-12, **change)).trunk
        assert trunk is not None
        still[next(iter(change.values()))] = {
            n for n, p in trunk.named_parameters() if torch.allclose(p[: len(own[n])], own[n], atol=1e-6)
        }
    norms = {n for n in own if "norm" in n}  # fresh ones are ones too
    assert still[1] - norms == {n for n in own if not n.startswith("layers.1.")} - norms
    assert still[0] - norms == {"embed_tokens.weight"}
    assert still["random"] - norms == set()
    assert still[2] == set(own)


def test_recadam_pulls_a_random_start_to_the_pretrained_weights() -> None:
    lm = language_model("gpt2")
    far, near = (
        gpt(start(lm, task()), quick(steps=40, start="random", observe_every=1, optimizer=optimizer)).phases["finetune"]
        for optimizer in ("adamw", {"name": "recadam", "gamma": 20, "t0": 30})
    )
    free, pulled = ([v for _, m, v in done.observed if m == "anchor_distance"] for done in (far, near))
    assert pulled[0] == pytest.approx(0.8 * free[0], rel=0.1)  # lr * gamma = 0.2 of the distance in the first step
    assert pulled[-1] < 0.5 * pulled[0]
    assert free[-1] > 0.9 * free[0]


def test_how_much_is_preserved_is_measured_over_the_rows_the_model_had() -> None:
    from eunoe.data.corpus import Blocks

    lm = language_model()
    import numpy as np

    ids = np.random.default_rng(0).integers(5, size(), (2, 16))
    batches = eval_batches(lm, Blocks(ids, np.array([0, 1]), "made"), 2, 0.15)
    measure = Retention(lm, {"text": batches})
    tuned = gpt(start(lm, task()), quick(steps=1, lr=1e-12))
    assert tuned.trunk is not None
    scores = {s.metric: s.value for s in measure.measure(tuned.trunk)}
    assert scores["lm_loss@text"] == pytest.approx(measure.before["text"], abs=1e-4)
    assert scores["anchor_distance"] == pytest.approx(0.0, abs=1e-5)


# -- killed and resumed -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("save", [1, 3])
def test_killed_in_the_middle_or_after_the_last_step_it_ends_in_the_same_bits(
    save: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, given = language_model(), task("choice")
    settings = quick(steps=6, checkpoint_every=2, dropout=0.1)
    whole = gpt(start(lm, given), settings)
    original, count = checkpoint.save, 0

    def killed(*args: Any, **more: Any) -> None:
        nonlocal count
        original(*args, **more)
        count += 1
        if count == save:
            raise RuntimeError("killed")

    monkeypatch.setattr("eunoe.checkpoint.save", killed)
    with pytest.raises(RuntimeError, match="killed"):
        gpt(start(lm, given, folder=tmp_path / "steps"), settings)
    resumed = gpt(start(lm, given, folder=tmp_path / "steps"), settings)
    assert isinstance(whole, Tuned)
    assert whole.trunk is not None
    assert resumed.trunk is not None
    assert same(resumed.trunk, bits(whole.trunk))
    assert resumed.scores == whole.scores
    assert resumed.curve_csv() == whole.curve_csv()


# -- refusals -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({"max_length": 129}, task(), r"t\.max_length is 129, but 'tiny gpt2' reads at most 128 tokens"),
        ({"transferred": 3}, task(), r"transferred is 3, but 'tiny gpt2' has 2 layers\. Set it to 2 or less"),
        ({"both_orders": True}, task(), r"both_orders is True, which is about pairs"),
        ({"max_length": 4}, task(pair=True), r"max_length is 4, which leaves nothing.* Set it to 5 or more"),
        ({"max_length": 5}, Task("t", "choice", (), (Example("a", "was it", 0, ("x", "good")),), (), None),
         r"the choice 'x' has 3 tokens with its question; max_length = 5 leaves 1.* never cut"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict[str, Any], given: Task, message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        check(language_model(), given, quick(**change), "t")


def test_a_masked_model_is_refused() -> None:
    lm = LanguageModel(tiny_bert(), tiny_tokenizer(), "masked", "tiny bert")
    with pytest.raises(EunoeError, match=r"needs a causal LM; 'tiny bert' is a masked one\. Name a causal model"):
        check(lm, task(), quick(), "t")


def test_a_model_that_reads_from_the_end_is_refused() -> None:
    lm = language_model()
    lm.tokenizer.backward = True
    with pytest.raises(
        EunoeError, match=r"reads from left to right, and .* reads from the end\. Name a model that reads forward"
    ):
        check(lm, task(), quick(), "t")


def test_a_head_that_cannot_grow_is_refused_before_anything_is_written() -> None:
    lm = language_model()
    lm.model.lm_head = nn.Sequential(nn.Linear(16, size()))
    with pytest.raises(EunoeError, match=r"GPT2LMHeadModel .* writes them with Sequential; new words need"):
        check(lm, task(), quick(), "t")


def test_layers_of_a_random_start_are_refused() -> None:
    with pytest.raises(EunoeError, match="transferred = 1 of a random start: no layer is"):
        resolve(quick(start="random", transferred=1), "t")


def test_that_contexts_are_cut_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", False)
    say_once.cache_clear()
    check(language_model(), task("choice"), quick(max_length=5), "t")
    said = " ".join(capsys.readouterr().err.split())
    assert "the context of 64 of 64 choices is longer than max_length = 5 tokens allows" in said


def test_padding_never_reaches_a_score() -> None:
    lm, given = language_model(), task(pair=True)
    rows = encode(lm, given, (Example("good", "bad", "bad"), Example("good " * 9, "bad", "bad")), quick())
    add_words(lm.model, 3)
    model = DoubleHead(lm.model, 2, 1, False, 0.0).eval()
    together = pad_rows(rows, [0, 1])
    alone = pad_rows(rows, [0])
    with torch.no_grad():
        first, second = (model(**{k: v for k, v in b.items() if k != "labels"})[0] for b in (together, alone))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_stories260k_a_real_pretrained_model(tmp_path: Path) -> None:
    """A gain over no pretraining at all, on stories told in its own words: which of two words ended the story?"""
    import importlib.util

    source = shared("data/stories260k")
    file = Path(__file__).resolve().parents[2] / "recipes" / "convert_stories260k.py"
    spec = importlib.util.spec_from_file_location("convert_stories260k", file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.convert(source, tmp_path / "stories260k")
    lm = load_lm(ModelSettings(name=str(tmp_path / "stories260k")))
    given = task("choice", n=16)
    tuned = gpt(start(lm, given), quick(max_length=64, epochs=8, lr=5e-3))
    assert {s.metric: s.value for s in tuned.scores}["accuracy"] >= 0.75
