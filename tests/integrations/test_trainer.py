"""RecAdam in the Trainer of Hugging Face: the same weights as a loop by hand, the same bits after a resume, clear refusals."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from eunoe.errors import EunoeError
from eunoe.integrations.trainer import OURS, recadam, shares_of_rate, steps_of_run
from eunoe.optim import RecAdam, anchored_groups
from eunoe.optim.table import RecAdamSettings

SETTINGS: dict[str, Any] = {"gamma": 500.0, "t0": 0.5, "rise": 0.5}


def tiny(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=40, **shape))


def rows(n: int = 24) -> list[dict[str, Any]]:
    ids = torch.randint(5, 40, (n, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row.tolist(), "labels": int(row[0] > 20)} for row in ids]


def arguments(folder: Path, **change: Any) -> TrainingArguments:
    settings = {
        "max_steps": 8, "learning_rate": 1e-3, "weight_decay": 0.1, "per_device_train_batch_size": 4, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "warmup_steps": 2, "logging_strategy": "no",
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**settings, **change})


def trainer(model: Any, args: TrainingArguments, **more: Any) -> Trainer:
    chosen = more.pop("chosen", None) or recadam(model, args, **SETTINGS)
    return Trainer(model, args, train_dataset=rows(), optimizer_cls_and_kwargs=chosen, **more)


def inner(trainer: Trainer) -> RecAdam:
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert isinstance(optimizer, RecAdam)
    return optimizer


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_trains_to_the_weights_of_a_loop_by_hand(tmp_path: Path, accumulation: int, schedule: str) -> None:
    change = {"gradient_accumulation_steps": accumulation, "lr_scheduler_type": schedule, "max_steps": 6}
    args = arguments(tmp_path, train_sampling_strategy="sequential", **change)
    theirs, ours = tiny(), tiny()
    for model in (theirs, ours):  # the two loops draw no random numbers alike
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
    theirs.accepts_loss_kwargs = False  # this head drops them, and without this line the Trainer would not average
    trainer(theirs, args).train()

    k, t0 = RecAdamSettings(**SETTINGS).in_steps(6)
    groups = anchored_groups(ours, weight_decay=0.1)
    optimizer = RecAdam(groups, 1e-3, gamma=500.0, k=k, t0=t0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=6)
    data, ours_at = rows(), 0
    ours.train()
    for _ in range(6):
        chunk = []
        while len(chunk) < accumulation and (ours_at < len(data) or not chunk):
            ours_at = 0 if ours_at >= len(data) else ours_at
            chunk.append(data[ours_at : ours_at + 4])
            ours_at += 4
        for batch in chunk:
            ids, labels = (torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels"))
            (ours(input_ids=ids, labels=labels).loss / len(chunk)).backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    for (name, a), b in zip(theirs.state_dict().items(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    assert not same(ours, tiny())


class Stop(TrainerCallback):
    """Ends training early, as a kill would, without changing how long the run is meant to be."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def test_resumed_from_a_checkpoint_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2)
    whole, cut, resumed = tiny(), tiny(), tiny()
    trainer(whole, args).train()
    other = arguments(tmp_path / "cut", save_strategy="steps", save_steps=3, gradient_accumulation_steps=2)
    trainer(cut, other, callbacks=[Stop(4)]).train()
    assert not same(cut, whole)
    trainer(resumed, other).train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert same(resumed, whole)


def test_a_checkpoint_is_two_moments_and_no_anchor_and_refuses_other_anchors(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=3)
    model = tiny()
    trainer(model, args, callbacks=[Stop(3)]).train()
    saved = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)
    tensors = [v for state in saved["state"].values() for v in state.values() if v.ndim]
    assert sum(v.numel() for v in tensors) == 2 * sum(p.numel() for p in model.parameters())
    assert [isinstance(group["anchor"], str) for group in saved["param_groups"]] == [True, True, False, False]
    for anchors in ({"anchor": tiny(1).state_dict()}, {"anchor": model.state_dict()}):
        again = tiny()
        chosen = recadam(again, args, **SETTINGS, **anchors)
        with pytest.raises(EunoeError, match="another anchor"):
            trainer(again, args, chosen=chosen).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_the_head_is_free_and_the_groups_are_the_trainers_rate_and_decay(tmp_path: Path) -> None:
    model = tiny()
    run = trainer(model, arguments(tmp_path, adam_beta2=0.98, adam_epsilon=1e-7))
    run.create_optimizer()
    groups = inner(run).param_groups
    free = {n for group in groups if group["anchor"] is None for n in group["param_names"]}
    assert free == {"classifier.weight", "classifier.bias"}
    assert all(group["lr"] == 1e-3 and group["betas"] == (0.9, 0.98) and group["eps"] == 1e-7 for group in groups)
    decays = {n: group["weight_decay"] for group in groups for n in group["param_names"]}
    assert decays == {n: 0.1 if p.ndim > 1 else 0.0 for n, p in model.named_parameters()}
    theirs = Trainer(model, arguments(tmp_path)).get_decay_parameter_names(model)
    assert {n for n, decay in decays.items() if decay} == set(theirs)


def test_anchors_are_the_weights_at_the_call_or_a_checkpoint_on_disk(tmp_path: Path) -> None:
    pretrained = tiny(3)
    pretrained.save_pretrained(tmp_path / "base")
    model, args = tiny(), arguments(tmp_path)
    now = recadam(model, args, **SETTINGS)
    file = recadam(model, args, anchor=tmp_path / "base", **SETTINGS)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)  # as loading a checkpoint would
    for chosen, expected in ((now, before), (file, dict(pretrained.named_parameters()))):
        run = trainer(model, args, chosen=chosen)
        run.create_optimizer()
        for group in inner(run).param_groups:
            for name, anchor in zip(group["param_names"], group["anchor"] or [], strict=group["anchor"] is not None):
                assert torch.equal(anchor, expected[name]), name


def test_parts_of_the_base_model_that_are_new_are_named_and_an_anchor_that_lacks_others_is_refused(
    tmp_path: Path,
) -> None:
    model, args = tiny(), arguments(tmp_path)
    anchor = {n: p.clone() for n, p in model.state_dict().items() if "encoder.layer.1." not in n}
    with pytest.raises(EunoeError, match=r"without an anchor: bert.encoder.layer.1.*\(16 names\).*free="):
        recadam(model, args, anchor=anchor, **SETTINGS)
    new = {n for n, _ in model.named_parameters() if "encoder.layer.1." in n or "classifier" in n}
    for given in (anchor, None):
        run = trainer(model, args, chosen=recadam(model, args, anchor=given, free=["encoder.layer.1"], **SETTINGS))
        run.create_optimizer()
        groups = inner(run).param_groups
        assert {n for group in groups if group["anchor"] is None for n in group["param_names"]} == new


def test_the_trainer_may_wrap_the_model_after_recadam_was_called(tmp_path: Path) -> None:
    model = tiny()
    make, kwargs = recadam(model, arguments(tmp_path), free=["bert.pooler"], **SETTINGS)
    for wrapped in (torch.nn.DataParallel(model), torch.compile(torch.nn.DataParallel(model))):
        groups = make()(wrapped, **kwargs).param_groups  # type: ignore[arg-type]
        free = {n.split(".")[-3:][0] for group in groups if group["anchor"] is None for n in group["param_names"]}
        assert free == {"pooler", "module"}  # module.classifier.weight
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_search_that_changes_the_rate_and_makes_the_model_anew_is_followed(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    run = Trainer(
        model_init=lambda: tiny(0),
        args=args,
        train_dataset=rows(),
        optimizer_cls_and_kwargs=recadam(tiny(), args, **SETTINGS),
    )
    for rate in (1e-4, 2e-4):
        args.learning_rate = rate
        run.train()
        assert [group["initial_lr"] for group in inner(run).param_groups] == [rate] * 4
        assert sum(group["anchor"] is not None for group in inner(run).param_groups) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"num_train_epochs": 3},
        {"num_train_epochs": 2.5, "gradient_accumulation_steps": 2},
        {"num_train_epochs": 1, "per_device_train_batch_size": 5, "gradient_accumulation_steps": 4},
        {"num_train_epochs": 2, "per_device_train_batch_size": 7, "dataloader_drop_last": True},
        {"num_train_epochs": 1, "per_device_train_batch_size": 100},
        {"max_steps": 3},
    ],
)
def test_the_length_of_the_run_is_the_trainers(tmp_path: Path, change: dict[str, Any]) -> None:
    args = arguments(tmp_path, **{"max_steps": -1, **change})
    run = Trainer(tiny(), args, train_dataset=rows())
    assert steps_of_run(args, len(rows())) == run.set_initial_training_values(args, run.get_train_dataloader())[-1]
    assert steps_of_run(args, None) == (3 if args.max_steps > 0 else None)


def test_shares_of_the_run_become_steps(tmp_path: Path) -> None:
    args, model = arguments(tmp_path, max_steps=-1, num_train_epochs=5), tiny()
    run = trainer(model, args, chosen=recadam(model, args, rows=24, t0=0.5, rise=0.5, gamma=500.0))
    run.train()
    k, t0 = RecAdamSettings(t0=0.5, rise=0.5).in_steps(run.state.max_steps)
    assert [(group["k"], group["t0"]) for group in inner(run).param_groups] == [(k, t0)] * 4
    assert t0 == 15


def test_what_will_not_work_is_warned_about_with_the_numbers(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=200, learning_rate=2e-5, warmup_steps=0)
    with pytest.warns(UserWarning, match="nothing is ever learnt") as caught:
        recadam(tiny(), args, t0=2000)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recadam(tiny(), args, t0=0.25, rise=0.2)


@pytest.mark.parametrize(
    ("schedule", "change"),
    [
        ("linear", {}), ("cosine", {"warmup_steps": 0}), ("constant", {}), ("constant_with_warmup", {}), ("inverse_sqrt", {}),
        ("polynomial", {"lr_scheduler_kwargs": {"power": 2.0, "lr_end": 1e-5}}),
        ("cosine_with_restarts", {"lr_scheduler_kwargs": {"num_cycles": 2}}),
        ("cosine_with_min_lr", {"lr_scheduler_kwargs": {"min_lr": 1e-4}}),
        ("warmup_stable_decay", {"lr_scheduler_kwargs": {"num_decay_steps": 3}}),
    ],
)  # fmt: skip
def test_the_rates_that_are_foreseen_are_those_that_the_trainer_takes(
    tmp_path: Path, schedule: str, change: dict[str, Any]
) -> None:
    args = arguments(tmp_path, lr_scheduler_type=schedule, **change)
    seen: list[float] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tiny(), args, callbacks=[Watch()]).train()
    shares = shares_of_rate(args, 8)
    assert shares is not None
    assert [share * 1e-3 for share in shares] == pytest.approx(seen, rel=1e-12)
    assert len(seen) == 8


def test_a_schedule_that_follows_the_loss_is_not_foreseen(tmp_path: Path) -> None:
    assert (
        shares_of_rate(arguments(tmp_path, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps"), 8) is None
    )


def test_recadam_given_to_the_trainer_by_itself_is_warned_about_for_it_would_recall_nothing(tmp_path: Path) -> None:
    run = Trainer(tiny(), arguments(tmp_path), train_dataset=rows(), optimizer_cls_and_kwargs=(RecAdam, {"lr": 1e-4}))
    with pytest.warns(UserWarning, match="weights without an anchor"):
        run.create_optimizer()


def test_a_warm_up_that_the_trainers_schedule_does_not_have_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="warmup_steps is 2, but .*constant_with_warmup") as caught:
        recadam(tiny(), arguments(tmp_path, lr_scheduler_type="constant"), **SETTINGS)
    assert {warning.filename for warning in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recadam(tiny(), arguments(tmp_path, lr_scheduler_type="constant_with_warmup"), **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, {"optim": "adafactor"}, "optim is adafactor in TrainingArguments, but recadam makes the optimizer"),
        ({}, {"optim_args": "rank=4"}, "optim_args is 'rank=4' in TrainingArguments"),
        ({}, {"optim_target_modules": ["query"]}, "optim_target_modules is ['query'] in TrainingArguments"),
        (
            {},
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"pow": 1}},
            "lr_scheduler_type cosine with lr_scheduler_kwargs",
        ),
        ({"gama": 1.0}, {}, "unknown setting of recadam 'gama'. Did you mean gamma"),
        ({"lr": 1.0}, {}, "set learning_rate in TrainingArguments"),
        ({"weight_decay": 1.0}, {}, "set weight_decay in TrainingArguments"),
        ({"t0": 0.25}, {"max_steps": -1}, "rows=len"),
        ({"rise": 0.25}, {"max_steps": -1, "auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"rise": 0.25, "k": 1.0}, {}, "give one of the two"),
        ({"gamma": 5000}, {}, "lr <= 0.0004 or gamma <= 2000"),
        ({"anneal": "sigmod"}, {}, "sigmoid"),
        ({"gamma": "much"}, {}, "much"),
        ({"anchor": "nowhere"}, {}, "no safetensors weights at nowhere"),
        ({"anchor": {"other.weight": torch.zeros(1)}}, {}, "no weight of the model has an anchor"),
    ],
)
def test_wrong_settings_are_refused_when_recadam_is_called(
    tmp_path: Path, settings: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(EunoeError, match=re.escape(message)):
        recadam(tiny(), arguments(tmp_path, **change), **{"gamma": 500.0, **settings})


def test_wrong_models_are_refused(tmp_path: Path) -> None:
    args, model = arguments(tmp_path), tiny()
    with pytest.raises(EunoeError, match="takes the model and then its TrainingArguments"):
        recadam(args, model)  # type: ignore[arg-type]
    with pytest.raises(EunoeError, match="anchor=FOLDER"):
        recadam(tiny().to("meta"), args, **SETTINGS)
    args.deepspeed = {"zero_optimization": {"stage": 1}}
    with pytest.raises(EunoeError, match="DeepSpeed"):
        recadam(model, args, **SETTINGS)
    args.deepspeed = None
    model.bert.embeddings.requires_grad_(False)
    chosen = recadam(model, args, **SETTINGS)
    model.bert.embeddings.requires_grad_(True)
    with pytest.raises(EunoeError, match="Unfreeze them before that call"):
        trainer(model, args, chosen=chosen).train()


def test_every_setting_reaches_the_optimizer(tmp_path: Path) -> None:
    other: dict[str, Any] = {
        "gamma": 7.0, "anneal": "sigmoid", "k": 0.3, "t0": 3.0, "weight": 0.9, "correct_bias": False, "form": "paper",
    }  # fmt: skip
    assert set(other) == set(OURS) - {"rise"}  # rise: above
    other["gamma"] = 0.1
    args, model = arguments(tmp_path), tiny()
    run = trainer(model, args, chosen=recadam(model, args, **other))
    run.create_optimizer()
    for group in inner(run).param_groups:
        assert {name: group[name] for name in other} == other
    straight = trainer(model, args, chosen=recadam(model, args, gamma=500.0, anneal="linear", t0=3.0))
    straight.create_optimizer()
    assert inner(straight).param_groups[0]["anneal"] == "linear"
    infinite = trainer(model, args, chosen=recadam(model, args, gamma=500.0, k=float("inf"), t0=0.5))
    infinite.create_optimizer()
    assert inner(infinite).param_groups[0]["k"] == float("inf")
