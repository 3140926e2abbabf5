"""The parts of a model fit each other, or the run ends with code 2, one message and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast, RobertaConfig, RobertaForMaskedLM

from eunoe.cli import main
from eunoe.errors import EunoeError
from eunoe.models.load import load_lm, refuse_longer
from eunoe.recipe import ModelSettings
from tests.conftest import shared
from tests.models.families import CAUSAL, CHANGES, SMALL, tiny
from tests.tiny import size, tiny_causal_tokenizer, tiny_folder, tiny_tokenizer
from tests.tiny_run import tiny_recipe


def refusal(folder: Path, model: Path, capsys: pytest.CaptureFixture[str], **settings: object) -> str:
    """What ``eunoe run`` says of ``model``: exit code 2, one message, nothing written."""
    work = folder / "work"
    work.mkdir()
    recipe = tiny_recipe(work, model={"name": str(model), **settings})
    capsys.readouterr()
    assert main(["run", str(recipe), "--out", str(folder / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert not (folder / "out").exists()
    assert said.startswith("eunoe: ")
    assert len(said.splitlines()) == 1, said
    assert len(said) < 900
    return said


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("gpt2_no_tokenizer", ("tokenizer.json, vocab.json, merges.txt", "161 rows")),
        ("bert_no_tokenizer", ("tokenizer.json, vocab.txt", "161 rows")),
        ("bert_words_unresized", ("181 tokens", "161 rows", "resize_token_embeddings")),
        ("gpt2_pad_unresized", ("162 tokens", "161 rows", "resize_token_embeddings")),
        ("bert_future_tokenizer", ("bert_future_tokenizer/tokenizer.json", "tokenizers 0.", "transformers 5.")),
        ("llama_bnb4", ("quantised (bitsandbytes, 4 bit)", "Load the original model")),
        ("bert_lfs_weights", ("bert_lfs_weights/model.safetensors", "git lfs pull")),
    ],
)
def test_folders_that_people_have(
    case: str, says: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(tmp_path, shared(f"cases/{case}"), capsys)
    assert all(part in said for part in says), said


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def other_tokenizer(folder: Path) -> None:
    no_tokenizer(folder)
    few = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghi"]
    BertTokenizerFast(vocab={piece: i for i, piece in enumerate(few)}).save_pretrained(folder)


def more_words(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["antidisestablishmentarianism"])
    tokenizer.save_pretrained(folder)


def more_special(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<|over|>"})
    tokenizer.save_pretrained(folder)


def no_mask(folder: Path) -> None:
    tiny_causal_tokenizer().save_pretrained(folder)


def mask_unknown(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = "[UNK]"
    tokenizer.save_pretrained(folder)


def not_finite(folder: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = float("nan")
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (no_tokenizer, "comes without its tokenizer: what was found has 0 tokens besides special ones"),
        (other_tokenizer, "comes without its tokenizer: what was found has 9 tokens besides special ones"),
        (more_words, f"has {size() + 1} tokens, but the model's embedding has {size()} rows: the last 1 have none"),
        (more_special, f"has {size() + 1} tokens, but the model's embedding has {size()} rows: the last 1 have none"),
        (no_mask, "is a masked LM, but its tokenizer has no mask token. Give it"),
        (mask_unknown, "is a masked LM, but its tokenizer has no mask token of its own"),
        (not_finite, "numbers that are not finite"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(
    change: Callable[[Path], None], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder(tmp_path, vocab_size=size() if change is not other_tokenizer else 161)
    change(folder)
    said = refusal(tmp_path, folder, capsys)
    assert says in said
    assert "objective: causal" not in said  # an encoder would see the token that it predicts


def test_a_larger_embedding_fits(tmp_path: Path) -> None:
    for rows in (size() + 1, 4 * size()):
        lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path / str(rows), vocab_size=rows))))
        assert lm.model.config.vocab_size == rows


# -- the objective ----------------------------------------------------------------------------------------------
def saved(family: str, folder: Path, **change: object) -> Path:
    """A tiny model of ``family`` with a tokenizer that fits it."""
    tiny(family, **change).save_pretrained(folder)
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    words = [*names, *(f"w{i}" for i in range(SMALL["vocab_size"] - len(names)))]
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(words)})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", sorted(set(CHANGES) - {"t5"}))
def test_every_family_trains_on_its_own_objective_alone(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / family)
    right, wrong = ("causal", "masked") if family in CAUSAL else ("masked", "causal")
    assert load_lm(ModelSettings(name=str(folder))).objective == right
    with pytest.raises(EunoeError, match=rf"(model\.objective is|be trained as a) {wrong}.*eave model\.objective out"):
        load_lm(ModelSettings(name=str(folder), objective=wrong))


def test_an_encoder_told_to_be_causal_would_see_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(tmp_path, tiny_folder(tmp_path), capsys, objective="causal")
    assert "it also reads what stands after a token, and so the token that it is to predict" in said


def test_an_encoder_made_a_decoder_is_causal_and_not_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path, is_decoder=True)
    assert load_lm(ModelSettings(name=str(folder), objective="causal")).objective == "causal"
    assert "reads only what stands before a token" in refusal(tmp_path, folder, capsys)


# -- lengths ----------------------------------------------------------------------------------------------------
def limit(folder: Path) -> int:
    lm = load_lm(ModelSettings(name=str(folder)))
    most = lm.positions
    assert most is not None
    refuse_longer(lm, most, "training.block")
    lm.model(input_ids=torch.full((1, most), 7))
    with pytest.raises(EunoeError, match=f"training.block is {most + 1}, but .* reads at most {most} tokens at once"):
        refuse_longer(lm, most + 1, "training.block")
    if lm.model.config.model_type in ("bert", "roberta"):
        with pytest.raises((IndexError, RuntimeError)):
            lm.model(input_ids=torch.full((1, most + 1), 7))
    return most


def test_all_positions_are_usable_and_no_more(tmp_path: Path) -> None:
    assert limit(tiny_folder(tmp_path, max_position_embeddings=size(), pad_token_id=0)) == size()
    assert limit(tiny_folder(tmp_path, "gpt2", n_positions=size())) == size()
    assert limit(tiny_folder(tmp_path, "llama", max_position_embeddings=size())) == size()
    config = RobertaConfig(
        vocab_size=size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=size(), pad_token_id=3, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    folder = tmp_path / "roberta"
    RobertaForMaskedLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert limit(folder) == size() - 4


def test_as_many_words_as_positions(tmp_path: Path) -> None:
    assert limit(shared("cases/bert_positions_eq_vocab")) == 161
