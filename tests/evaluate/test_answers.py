"""Greedy answers: the argmax of each step, alone or as a chat; and in a run, before and after, through a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eunoe.cli import main
from eunoe.errors import EunoeError
from eunoe.evaluate.answers import answer, refuse_unanswerable
from eunoe.models.load import LanguageModel, load_lm
from eunoe.recipe import ModelSettings
from tests.tiny import tiny_folder
from tests.tiny_run import state, tiny_recipe


@pytest.fixture(params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    return load_lm(ModelSettings(name=str(tiny_folder(tmp_path, request.param))))


def greedy(lm: LanguageModel, ids: torch.Tensor, tokens: int) -> str:
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(tokens):
            nxt = lm.model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, nxt], 1)
            if int(nxt) == lm.tokenizer.eos_token_id:
                break
    return str(lm.tokenizer.decode(ids[0, start:], skip_special_tokens=True))


def test_an_answer_takes_the_likeliest_token_each_time(lm: LanguageModel) -> None:
    ids = lm.tokenizer("the team won", return_tensors="pt").input_ids
    for tokens in (1, 9):
        assert answer(lm, "the team won", tokens) == greedy(lm, ids, tokens)


def test_a_chat_model_is_asked_as_a_user_asks(lm: LanguageModel) -> None:
    lm.tokenizer.chat_template = "the {% for m in messages %}{{ m['role'] }} said {{ m['content'] }} .{% endfor %}" \
                                 "{% if add_generation_prompt %} it was{% endif %}"  # fmt: skip
    ids = lm.tokenizer("the user said good day . it was", return_tensors="pt").input_ids
    assert answer(lm, "good day", 7) == greedy(lm, ids, 7)


def test_a_masked_lm_names_the_likeliest_tokens_of_each_mask(tmp_path: Path) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, "bert"))))
    mask = lm.tokenizer.mask_token
    prompt = f"the {mask} won the {mask}"
    ids = lm.tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        shares = lm.model(input_ids=ids).logits[0].softmax(-1)
    expected = []
    for place in (ids[0] == lm.mask_id).nonzero().flatten():
        values, tokens = shares[place].topk(3)
        words = [lm.tokenizer.decode([int(token)]).strip() for token in tokens]
        expected.append(", ".join(f"{word} {100 * float(v):.0f} %" for word, v in zip(words, values, strict=True)))
    assert answer(lm, prompt, 1) == " / ".join(expected)
    assert len(expected) == 2
    assert expected[0] != expected[1]


# -- in a run -----------------------------------------------------------------------------------------------------
def recipe(folder: Path, **evaluation: Any) -> Path:
    asked = {"blocks": 4, "batch": 8, "prompts": ["the team won", "good day"], "answer_tokens": 5, **evaluation}
    return tiny_recipe(folder, evaluation=asked, model={"name": str(tiny_folder(folder, "llama"))})


SMALL = ["--domains.*.task", "null", "--training.lr", "0.05"]


def test_a_run_keeps_and_shows_the_answers_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", str(recipe(tmp_path)), "--out", str(out), *SMALL]) == 0
    printed = capsys.readouterr().out
    loaded = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    asked = [(s["method"], s["seed"], s["learnt"], s["reads_as"]) for s in loaded if s["prompt"] == "the team won"]
    both = ["sport", "money"]
    assert asked == [("base", 0, [], None), ("ncl", 0, both, None), ("cpt", 0, both, None), ("cpt", 0, both, "money"),
                     ("ncl", 1, both, None), ("cpt", 1, both, None), ("cpt", 1, both, "money")]  # fmt: skip
    by = {(s["method"], s["seed"], s["reads_as"], s["prompt"]): s["answer"] for s in loaded}
    for prompt in ("the team won", "good day"):
        assert by["cpt", 0, None, prompt] == by["base", 0, None, prompt], "plug-ins off: the base model"
        assert f"prompt: {prompt}" in printed
    assert any(by["ncl", 0, None, p] != by["base", 0, None, p] for p in ("the team won", "good day"))
    before = state(out)
    assert main(["run", str(recipe(tmp_path)), "--out", str(out), *SMALL]) == 0
    assert state(out) == before

    one = out / "sequences" / "cpt.given.seed1" / "scores" / "2" / "prompts" / "samples.jsonl"
    for file in (out / "finished.json", out / "samples.jsonl", one):
        file.unlink()
    rows = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(rows[:-1]))
    assert main(["run", str(recipe(tmp_path)), "--out", str(out), *SMALL]) == 0
    after = state(out)
    assert {k for k in before if before[k] != after[k]} <= {"times.jsonl"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.name", "{bert}"], "'the team won' has no [MASK], and"),
        (["--evaluation.prompts", "[{{text: ' '}}]"], "an empty prompt cannot be answered"),
        (
            ["--evaluation.prompts", "[{{text: good day, domain: sports}}]"],
            "Did you mean sport? Allowed: money, sport.",
        ),
        (["--evaluation.prompts", "[{{txt: good day}}]"], "unknown key in recipe.evaluation.prompts"),
        (["--evaluation.prompts", "['  ']"], "an empty prompt cannot be answered"),
        (["--evaluation.answer_tokens", "0"], "answer_tokens: must be at least 1"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(bert=tiny_folder(tmp_path, "bert")) for word in words]
    assert main(["run", str(recipe(tmp_path)), "--out", str(tmp_path / "run"), *SMALL, *filled]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_masked_lm_fills_in_as_the_domain_that_a_prompt_is_of(tmp_path: Path) -> None:
    """What was learnt first is read as it was learnt, also by the last state; methods without plug-ins have one way to read."""
    out, asked = tmp_path / "run", [{"text": "the [MASK] won", "domain": "sport"}, "good [MASK]"]
    path = recipe(tmp_path, prompts=asked)
    words = ["--model.name", str(tiny_folder(tmp_path, "bert")), "--seeds", "[0]"]
    assert main(["run", str(path), "--out", str(out), *SMALL, *words]) == 0
    loaded = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(s["method"], s["prompt"], s["reads_as"]) for s in loaded] == [
        ("base", "the [MASK] won", None), ("base", "good [MASK]", None), ("ncl", "the [MASK] won", None), ("ncl", "good [MASK]", None),
        ("cpt", "the [MASK] won", "sport"), ("cpt", "good [MASK]", None), ("cpt", "good [MASK]", "money"),
    ]  # fmt: skip
    answers = [sample["answer"] for sample in loaded]
    assert answers[2] != answers[0], "ncl changed the model"
    assert answers[5] == answers[1], "plug-ins off: the base model"
    assert answers[6] != answers[1], "read as money"
    page = (out / "report.html").read_text()
    section = page[page.index("What it answers, before and after") :].partition("</section>")[0]
    for sample in loaded:
        assert sample["answer"] in section
    assert "cpt, after money, read as sport" in section


def test_a_masked_prompt_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, "bert"))))
    most = (lm.positions or 0) - 2  # beside [CLS] and [SEP]
    refuse_unanswerable(lm, ["good " * (most - 1) + "[MASK]"], 10_000, "recipe.evaluation")
    with pytest.raises(
        EunoeError, match=f"is {most + 3} tokens, but .* reads at most {most + 2} at once. Shorten the prompt"
    ):
        refuse_unanswerable(lm, ["good " * most + "[MASK]"], 1, "recipe.evaluation")


def test_a_prompt_that_leaves_no_positions_for_its_answer_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """Prompt and answer together; the model would look up positions that it does not have."""
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, "gpt2"))))
    refuse_unanswerable(lm, ["the market"], 126, "recipe.evaluation")
    with pytest.raises(
        EunoeError, match=r"is 2 tokens and its answer up to 127, but .* at most 128 .* answer_tokens to 126"
    ):
        refuse_unanswerable(lm, ["good", "the market"], 127, "recipe.evaluation")
