"""ULMFiT: what trains at which rate in every phase, kills at every phase and boundary, every option, refusals, other models."""

from __future__ import annotations

import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eunoe import train
from eunoe.data.tasks import Example, Task
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods.base import Method
from eunoe.models.anatomy import anatomy
from eunoe.models.depth import depth_groups
from eunoe.models.load import LanguageModel
from eunoe.models.pooled import PooledClassifier
from eunoe.optim.schedules import slanted_triangle
from eunoe.recipe import build
from eunoe.transfer import TRANSFERS
from eunoe.transfer import ulmfit as module
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.lm_text import LMStage, task_texts, text_ids
from eunoe.transfer.ulmfit import UlmfitSettings, check, resolve, ulmfit
from eunoe.transfer.ulmfit_settings import for_model
from tests.tiny import WORDS, tiny_bert, tiny_folder, tiny_gpt2, tiny_tokenizer


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)


def task(n: int = 24, unlabelled: tuple[str, ...] = ()) -> Task:
    def row(i: int) -> Example:
        word = ("good", "bad")[i % 2]
        return Example(f"{word} {WORDS[i % 40]} {WORDS[i % 37 + 3]} {WORDS[i % 11]}", None, word)

    rows = tuple(map(row, range(n + 8)))
    return Task("made", "classification", ("bad", "good"), rows[:n], rows[n:], None, unlabelled=unlabelled)


def bert() -> LanguageModel:
    return LanguageModel(tiny_bert(), tiny_tokenizer(), "masked", "tiny")


def settings(**change: Any) -> UlmfitSettings:
    lm = {"epochs": 1.0, "block": 8, "batch": 4, "lr": 1e-3, **change.pop("lm", {})}
    lm = {k: v for k, v in lm.items() if v is not None} if lm.get("tune") != "none" else {"tune": "none"}
    small = {"preset": "transformer", "epochs": 6, "batch": 8, "unfreeze_every": 1.0, "max_length": 16, "lm": lm}
    return resolve(build(UlmfitSettings, {**small, **change}, "ulmfit"), "ulmfit")


def start(lm: LanguageModel | None = None, **change: Any) -> Start:
    lm = lm or bert()
    given: dict[str, Any] = {
        "task": task(),
        "domain": None,
        "seed": 3,
        "batch": 8,
        "method": Method(lm.model, None, []),
    }
    return Start(lm=lm, **{**given, **change})


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: Tuned, b: Tuned) -> bool:
    assert a.trunk is not None
    assert b.trunk is not None
    pairs = zip(values(a.trunk).items(), values(b.trunk).items(), strict=True)
    return (
        all(n == m and torch.equal(x, y) for (n, x), (m, y) in pairs)
        and a.scores == b.scores
        and a.curve_csv() == b.curve_csv()
    )


# -- which weights train, and how fast, at every step ---------------------------------------------------------------------
class Seen:
    """Each step of each phase: weights that moved, by group, and the learning rate of each group."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, str, list[float | None]]] = []
        before: dict[str, torch.Tensor] = {}
        real, real_step = module.phase, torch.optim.AdamW.step
        current: list[Any] = []

        def phase(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = kwargs["name"].rpartition(" ")[2]
            current[:] = [model, name, depth_groups(model, tied="head" if name.endswith("lm") else "embeddings")]
            return real(model, *args, **kwargs)

        def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            model, name, groups = current
            named = dict(model.named_parameters())
            lr_of = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
            before.update(values(model))
            out = real_step(optimizer, *args, **kwargs)
            moved = [any(not torch.equal(named[n], before[n]) for n in group.weights) for group in groups]
            rates = [{lr_of.get(id(named[n])) for n in group.weights} for group in groups]
            assert all(len(of_group) == 1 for of_group in rates)
            self.steps.append((name, "".join(str(i) for i, yes in enumerate(moved) if yes), [r.pop() for r in rates]))
            return out

        monkeypatch.setattr(module, "phase", phase)
        monkeypatch.setattr(torch.optim.AdamW, "step", step)


ORDERS = {
    ("gradual", None): ["3", "23", "123", "0123"],
    ("gradual", 2): ["3", "23", "0123"],
    ("chain-thaw", None): ["3", "0", "1", "2", "0123"],
    ("last", None): ["3"],
    ("none", None): ["0123"],
}


@pytest.mark.parametrize(("order", "most"), ORDERS)
def test_the_group_and_rate_of_every_weight_at_every_step(
    order: Any, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 rows in batches of 8: 3 steps a pass, 6 passes, one a phase; the lm has groups layer, layer, head (with the tied table)."""
    seen, change = Seen(monkeypatch), {"unfreeze": order, "discriminative": 2.0, "body_lr": None}
    change |= {} if most is None else {"unfreeze_most": most}
    change |= {"discriminative": None} if order == "last" else {}
    change |= {"unfreeze_every": None} if order in ("none", "last") else {}
    preset = "paper" if order != "last" else "transformer"  # whose lr of the body is no share of the head's
    chosen = settings(preset=preset, lr=0.01, alpha=0.0, beta=0.0, chunk=None, **change)
    chosen = replace(chosen, chunk=None, alpha=0.0, beta=0.0)
    ulmfit(start(), chosen)
    phases = ORDERS[order, most]
    lengths = [3] * (len(phases) - 1) + [18 - 3 * (len(phases) - 1)]
    rows = [step for step in seen.steps if step[0] != "lm"]
    wanted = [
        (f"classifier-{i + 1}", moved, t, n)
        for i, (moved, n) in enumerate(zip(phases, lengths, strict=True))
        for t in range(n)
    ]
    assert [(name, moved) for name, moved, _ in rows] == [(name, moved) for name, moved, _, _ in wanted]
    for (_, moved, rates), (_, _, t, n) in zip(rows, wanted, strict=True):
        height = 0.01 * slanted_triangle(t, n, 0.1, 32)
        shares = [1 / 8, 1 / 4, 1 / 2, 1.0]
        assert rates == [pytest.approx(height * shares[g]) if str(g) in moved else None for g in range(4)]


def test_the_rates_of_the_language_model_and_a_head_with_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    chosen = settings(lr=0.01, body_lr=0.002, discriminative=2.0, unfreeze="none", unfreeze_every=None, epochs=1,
                      lm={"discriminative": 4.0, "schedule": "constant", "epochs": 2})  # fmt: skip
    ulmfit(start(), chosen)
    lm = [step for step in seen.steps if step[0] == "lm"]
    assert len(lm) >= 2
    for _, moved, rates in lm:  # embeddings (positions, types, norm), two layers, head with the tied table
        assert moved == "0123"
        assert rates == pytest.approx([1e-3 / 64, 1e-3 / 16, 1e-3 / 4, 1e-3])
    heads = [rates for name, _, rates in seen.steps if name != "lm"]
    for t, rates in enumerate(heads):
        height = slanted_triangle(t, len(heads), 0.1, 32)
        assert rates == pytest.approx([0.002 / 4 * height, 0.002 / 2 * height, 0.002 * height, 0.01 * height])


# -- killed and resumed -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole() -> Tuned:
    return ulmfit(start(), settings())


@pytest.mark.parametrize("stop_at", [1, 5, 6, 8, 9, 11, 14, 20])
def test_stopped_and_resumed_in_every_phase_and_at_every_boundary(
    stop_at: int, whole: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lm has 5 steps, three phases 3 each, the last 9."""
    taken, real = [0], train._step

    def step(*args: Any) -> float:
        taken[0] += 1
        if taken[0] == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    begun = start(folder=tmp_path, identity={"run": "r", "cell": "c"})
    monkeypatch.setattr(train, "_step", step)
    with pytest.raises(Interrupted):
        ulmfit(begun, settings())
    resumed = ulmfit(begun, settings())
    assert same(resumed, whole)
    assert list(resumed.phases) == ["lm", *(f"classifier-{i}" for i in (1, 2, 3, 4))]


class Killed(BaseException):
    """As SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("boundary", range(5))
def test_killed_as_a_phase_ends_and_resumed(
    boundary: int, whole: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a phase has trained and before or after that is noted: nothing is trained twice that is noted."""
    begun = start(folder=tmp_path, identity={"run": "r", "cell": "c"})
    real, saved = module.checkpoint.save, [0]

    def save(folder: Path, *args: Any, **kwargs: Any) -> None:
        if folder.name == "done":
            if saved[0] == boundary:
                raise Killed
            saved[0] += 1
        real(folder, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module.checkpoint, "save", save)
        with pytest.raises(Killed):
            ulmfit(begun, settings())
    trained: list[str] = []
    phase = module.phase

    def counted(*args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["name"].rpartition(" ")[2])
        return phase(*args, **kwargs)

    monkeypatch.setattr(module, "phase", counted)
    assert same(ulmfit(begun, settings()), whole)
    assert trained == ["lm", "classifier-1", "classifier-2", "classifier-3", "classifier-4"][boundary:]
    trained.clear()
    assert same(ulmfit(begun, settings()), whole)
    assert not trained


def test_a_damaged_checkpoint_of_finished_phases_is_said_and_they_train_again(
    whole: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, said = start(folder=tmp_path, identity={"run": "r", "cell": "c"}), list[str]()
    monkeypatch.setattr(module, "say", said.append)
    ulmfit(begun, settings())
    file = tmp_path / "done/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert same(ulmfit(begun, settings()), whole)
    assert [("model.safetensors was changed" in line, line.endswith("are trained again.")) for line in said] == [
        (True, True)
    ]
    (tmp_path / "done/model.safetensors").unlink()
    assert same(ulmfit(begun, settings()), whole)


def test_what_another_fine_tuning_finished_is_refused(tmp_path: Path) -> None:
    ulmfit(start(folder=tmp_path, identity={"cell": "a"}), settings(epochs=4))
    with pytest.raises(EunoeError, match="belongs to another training"):
        ulmfit(start(folder=tmp_path, identity={"cell": "b"}), settings(epochs=4))


# -- it learns, from copies ---------------------------------------------------------------------------------------------
def test_it_learns_and_leaves_the_model_alone(whole: Tuned) -> None:
    lm = bert()
    before = values(lm.model)
    tuned = ulmfit(start(lm), settings(epochs=20, lr=0.01, body_lr=0.003))
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())
    assert {s.metric: s.value for s in tuned.scores}["accuracy"] == 1.0
    assert tuned.predict([Example("good morning", None, ""), Example("bad morning", None, "")]) == ["good", "bad"]
    assert same(ulmfit(start(), settings()), whole)  # a second time: the same bits


def test_text_without_labels_is_learnt_and_the_test_rows_are_not() -> None:
    made = task(unlabelled=("one more text", "and another"))
    texts = task_texts(made)
    assert texts[-2:] == ["one more text", "and another"]
    assert texts[:24] == [e.text for e in made.train]
    assert not {e.text for e in made.test} - {e.text for e in made.train} & set(texts)
    plain, more = (ulmfit(start(task=t), settings(epochs=4)) for t in (task(), task(unlabelled=(" ".join(WORDS),) * 3)))
    assert more.phases["lm"].tokens > plain.phases["lm"].tokens


# -- every option -----------------------------------------------------------------------------------------------------------
OPTIONS: dict[str, dict[str, Any]] = {
    "preset": {"preset": "scripts", "lm": {"discriminative": 1.0}, "chunk": 8, "alpha": 0.0, "beta": 0.0},
    "epochs": {"epochs": 5},
    "steps": {"steps": 13, "epochs": None},
    "batch": {"batch": 12},
    "micro_batch": {"micro_batch": 4},
    "lr": {"lr": 2e-3},
    "body_lr": {"body_lr": 2e-4},
    "discriminative": {"discriminative": 2.0},
    "unfreeze": {"unfreeze": "chain-thaw"},
    "unfreeze_every": {"unfreeze_every": 0.5},
    "unfreeze_most": {"unfreeze_most": 1},
    "schedule": {"schedule": "cosine"},
    "cut_frac": {"cut_frac": 0.5},
    "ratio": {"ratio": 4.0},
    "pooling": {"pooling": "mean"},
    "hidden": {"hidden": 20},
    "head_dropout": {"head_dropout": [0.2, 0.3]},
    "max_length": {"max_length": 4},
    "chunk": {"chunk": 3},
    "pooled": {"pooled": 2},
    "optimizer": {"optimizer": {"name": "adamw", "betas": [0.7, 0.99]}},
    "clip": {"clip": 0.01},
    "weight_decay": {"weight_decay": 0.5},
    "start": {"start": "random"},
    "lm.tune": {"lm": {"tune": "none"}},
    "lm.epochs": {"lm": {"epochs": 2.0}},
    "lm.steps": {"lm": {"steps": 1, "epochs": None}},
    "lm.batch": {"lm": {"batch": 2}},
    "lm.block": {"lm": {"block": 12}},
    "lm.max_length": {"lm": {"max_length": 5}},
    "lm.lr": {"lm": {"lr": 2e-3}},
    "lm.discriminative": {"lm": {"discriminative": [0.1, 0.2, 0.3, 1.0]}},
    "lm.schedule": {"lm": {"schedule": "linear"}},
    "lm.cut_frac": {"lm": {"cut_frac": 0.9}},
    "lm.ratio": {"lm": {"ratio": 2.0}},
    "lm.clip": {"lm": {"clip": 1e-3}},
    "lm.weight_decay": {"lm": {"weight_decay": 0.9}},
    "lm.mask_rate": {"lm": {"mask_rate": 0.6}},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_what_is_learnt(option: str, whole: Tuned) -> None:
    change = dict(OPTIONS[option])
    chosen = settings(**change)
    if option == "preset":
        assert chosen.unfreeze_most == 2
    other = ulmfit(start(), chosen)
    assert other.curve_csv() != whole.curve_csv()


def test_no_option_lacks_an_entry() -> None:
    names = {f"lm.{k}" for k in asdict(UlmfitSettings().lm)} | set(asdict(UlmfitSettings())) - {"lm"}
    # seen elsewhere: a rate of LSTMs, a backward model, the precision of every loop, and what changes no number
    elsewhere = {
        "dropout",
        "alpha",
        "beta",
        "backward",
        "precision",
        "checkpoint_every",
        "lm.vocabulary",
        "lm.largest",
        "lm.least",
    }
    assert names - elsewhere == set(OPTIONS)


def test_presets_are_the_papers_and_the_scripts() -> None:
    paper, scripts = (resolve(UlmfitSettings(preset=name), "x") for name in ("paper", "scripts"))  # type: ignore[arg-type]
    assert (paper.lr, paper.lm.lr, paper.batch, paper.discriminative) == (0.01, 0.004, 64, 2.6)
    assert (paper.cut_frac, paper.ratio, paper.unfreeze_most, paper.optimizer["betas"]) == (
        0.1,
        32.0,
        None,
        (0.7, 0.99),
    )
    assert (scripts.batch, scripts.unfreeze_most, scripts.ratio, scripts.optimizer["betas"]) == (
        32,
        2,
        8.0,
        (0.8, 0.99),
    )
    assert scripts.cut_frac is None  # a third, and an eighth in the last phase
    assert (scripts.clip, scripts.lm.clip, scripts.weight_decay, scripts.lm.weight_decay) == (25.0, 0.3, 1e-6, 1e-7)
    assert scripts.lm.discriminative == [1 / 6, 1 / 3, 1.0, 1 / 2]
    auto = resolve(UlmfitSettings(), "x")
    assert auto.lr is None  # the model decides
    assert for_model(auto, bert()).preset == "transformer"


# -- pooling ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("given", "phases"), [(None, [1 / 3, 1 / 3, 1 / 8]), (1 / 3, [1 / 3] * 3), (0.2, [0.2] * 3)])
def test_the_scripts_triangle_is_another_in_the_last_phase_unless_one_is_given(
    given: float | None, phases: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[float] = []
    real = module.slanted_triangle
    monkeypatch.setattr(
        module, "slanted_triangle", lambda step, steps, cut, ratio: (cuts.append(cut), real(step, steps, cut, ratio))[1]
    )
    chosen = {"preset": "scripts", "alpha": 0.0, "beta": 0.0, "chunk": 8, "cut_frac": given, "lm": {"tune": "none"}}
    ulmfit(start(), settings(**chosen))
    assert list(dict.fromkeys(cuts)) == list(dict.fromkeys(phases))
    assert cuts[-1] == phases[-1]


def test_concat_pooling_by_hand_and_a_row_of_one() -> None:
    torch.manual_seed(0)
    model = PooledClassifier(tiny_bert(), 2, pooled=3).eval()
    ids = torch.randint(5, 40, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        for row, end in ((0, 6), (1, 4)):
            states = model.trunk(input_ids=ids[row : row + 1, :end])[0][0][-3:]
            wanted = torch.cat([states[-1], states.amax(0), states.mean(0)])
            torch.testing.assert_close(seen[0][row], wanted, atol=1e-5, rtol=1e-5)
    model.train()
    assert model(input_ids=ids[:1], attention_mask=mask[:1]).isfinite().all()
    assert all(m.training for m in model.modules() if isinstance(m, nn.BatchNorm1d))


def test_chunks_are_read_by_themselves_and_pooled_together() -> None:
    torch.manual_seed(0)
    model = PooledClassifier(tiny_bert(), 2, chunk=4).eval()
    ids = torch.randint(5, 40, (2, 10))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    with torch.no_grad():
        _, states, *_ = model(states=True, input_ids=ids, attention_mask=mask)
        parts = [model.trunk(input_ids=ids[:1, i : i + 4])[0] for i in (0, 4, 8)]
        torch.testing.assert_close(states[0], torch.cat(parts, 1)[0], atol=1e-5, rtol=1e-5)
        assert not states[1, 4:].any()  # only padding: not read


def test_a_decoder_in_phases_and_no_model_that_reads_forward_as_the_backward_one(tmp_path: Path) -> None:
    from tests.tiny import tiny_causal_tokenizer

    lm = LanguageModel(tiny_gpt2(), tiny_causal_tokenizer(), "causal", "gpt")
    tuned = ulmfit(start(lm), settings(epochs=4))
    assert list(tuned.phases) == ["lm", *(f"classifier-{i}" for i in (1, 2, 3, 4))]
    with pytest.raises(EunoeError, match=r"recipe\.transfer\.backward: .* reads forward, as the model beside it does"):
        check(lm, task(), settings(epochs=4, backward=str(tiny_folder(tmp_path))), "recipe.transfer")


def test_a_random_start_forgets_the_lm_head_too_and_learns_the_text() -> None:
    """The paper's "without pretraining": nothing of the given weights is left, but the language model is tuned all the same."""
    other = bert()
    with torch.no_grad():
        for p in other.model.parameters():
            p.add_(0.3)
    chosen = settings(start="random")
    one, two = ulmfit(start(), chosen), ulmfit(start(other), chosen)
    assert "lm" in one.phases
    assert one.curve_csv() == two.curve_csv()
    assert "lm" not in ulmfit(start(), settings(start="random", lm={"tune": "none"})).phases


# -- refusals ------------------------------------------------------------------------------------------------------------------
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "phases": ({"epochs": 3}, "4 phases of unfreezing of 3 steps each (1.0 passes) are longer than the 9 steps"),
    "length": ({"max_length": 4000}, "max_length is 4000, but 'tiny' reads at most"),
    "chunk": ({"chunk": 4000, "max_length": 8000}, "chunk is 4000"),
    "block": ({"lm": {"block": 8000}}, "lm.block is 8000"),
    "shares": ({"discriminative": [1.0, 1.0]}, "discriminative lists 2 shares, but the model has 4 groups"),
    "lm shares": ({"lm": {"discriminative": [1.0]}}, "lm.discriminative lists 1 shares, but the model has 4 groups"),
    "alpha": ({"alpha": 2.0}, "alpha is 2, but 'tiny' has no recurrent states"),
    "preset": (
        {"preset": "paper", "alpha": None},
        "alpha is 2 (preset: paper is for an AWD-LSTM), but 'tiny' has no recurrent states",
    ),
    "dropout": ({"dropout": 0.5}, "for 'tiny' set model.dropout"),
    "no end": (
        {"preset": "paper", "pooling": "mean", "max_length": None},
        "max_length is 1400, but 'tiny' reads at most",
    ),
    "least": ({"lm": {"least": 3}}, "lm.least is not read with a tokenizer that keeps its vocabulary"),
    "kept": ({"lm": {"vocabulary": "kept"}}, "lm.vocabulary is not read with a tokenizer that keeps its vocabulary"),
    "first rate": (
        {"pooling": "mean", "head_dropout": (0.2, 0.1)},
        "head_dropout: the first dropout rate is not read with pooling: mean",
    ),
    "one row": ({"batch": 1}, "a batch of one row has no batch statistics"),
    "micro": ({"micro_batch": 3}, "micro_batch must divide batch = 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_trains(case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(EunoeError) as caught:
        check(bert(), task(), settings(**change), "recipe.transfer")
    assert message in str(caught.value)


def test_the_mark_at_a_texts_end_stays_where_it_is_cut() -> None:
    lm, given = bert(), task()
    rows = text_ids(lm, given, 4).reshape(-1, 4)
    assert len(rows) == len(task_texts(given))
    assert set(rows[:, 0]) == {lm.tokenizer.cls_token_id}
    assert set(rows[:, -1]) == {lm.tokenizer.sep_token_id}


def test_what_an_untuned_language_model_leaves_unread_is_refused() -> None:
    chosen = replace(settings(lm={"tune": "none"}), lm=LMStage(tune="none", mask_rate=0.3))
    with pytest.raises(EunoeError, match=r"lm\.mask_rate is not read with tune: none"):
        check(bert(), task(), chosen, "recipe.transfer")


def test_tasks_that_do_not_fit_are_refused() -> None:
    many = replace(task(), labels=tuple(map(str, range(30))))
    with pytest.raises(EunoeError, match="30 classes but 24 rows"):
        check(bert(), many, settings(), "recipe.transfer")
    few = replace(task(), train=task().train[:2])
    with pytest.raises(EunoeError, match=r"lm.block is 32, but the text of 'made' has \d+ tokens in all. .*tune: none"):
        check(bert(), few, settings(epochs=6, lm={"block": 32}), "recipe.transfer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "slanted"}, "slanted_triangle"),
        ({"schedule": "linear", "ratio": 8.0}, "x.ratio is not read with schedule: linear"),
        ({"unfreeze": "none", "unfreeze_every": 1.0}, "x.unfreeze_every is not read with unfreeze: none"),
        ({"unfreeze": "last", "discriminative": 2.0}, "x.discriminative is not read with unfreeze: last"),
        ({"discriminative": [1.0, 1.0], "body_lr": 0.1}, "x.body_lr is not read with discriminative: [...]"),
        ({"lm": {"tune": "none", "lr": 0.1}}, "x.lm.lr is not read with tune: none"),
        ({"lm": {"steps": 3, "epochs": 2}}, "x.lm.epochs is not read with steps: 3"),
        ({"pooling": "mean", "hidden": 20}, "hidden and pooled are not read with pooling: mean"),
        ({"discriminative": 0.5}, "lower layers learn slower"),
        ({"optimizer": {"name": "adamw", "weight_decay": 0.1}}, "optimizer.weight_decay is 0.1"),
    ],
)
@pytest.mark.parametrize("preset", ["auto", "paper"])
def test_settings_that_nothing_would_read_are_refused(change: dict[str, Any], message: str, preset: str) -> None:
    with pytest.raises(EunoeError) as caught:
        resolve(build(UlmfitSettings, {"preset": preset, **change}, "x"), "x")
    assert message in str(caught.value)


def test_what_is_resolved_resolves_to_itself() -> None:
    for preset in ("auto", "paper", "scripts", "transformer"):
        for change in (
            {},
            {"unfreeze": "last"},
            {"schedule": "cosine"},
            {"lm": {"tune": "none"}},
            {"optimizer": "recadam"},
        ):
            once = resolve(build(UlmfitSettings, {"preset": preset, **change}, "x"), "x")
            assert resolve(build(UlmfitSettings, asdict(once), "x"), "x") == once


def test_the_row_of_the_table() -> None:
    entry = TRANSFERS["ulmfit"]
    assert entry.unlabelled
    assert entry.no_best(UlmfitSettings()) is not None
    assert anatomy(bert().model).layers
