"""The one loop: the loss it means, the positions it asks, and how it stops, refuses, saves and goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe import checkpoint
from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches, collate_lm
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods.base import Batches, Method, Stage
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import LMLoss, LossSum, lm_loss, target_logits
from eunoe.recipe import LoopSettings
from eunoe.train import Job, Trained, train
from tests.models.families import CAUSAL, SMALL, tiny
from tests.stages import put_back
from tests.tiny import size, tiny_bert, tiny_gpt2, tiny_llama

MASK = 4


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)


def blocks(n: int = 24, length: int = 16, vocabulary: int = size()) -> Blocks:
    ids = np.random.default_rng(0).integers(5, vocabulary, (n, length))
    return Blocks(ids, np.arange(5), "made")


def batches(objective: Any = "masked", batch: int = 8, steps: int = 6, micro: int | None = None) -> LMBatches:
    return LMBatches(blocks(), objective, MASK, size(), batch, steps, 3, micro, 0.3)


def job(model: nn.Module, given: Batches | None = None, folder: Path | None = None, **change: Any) -> Job:
    settings = LoopSettings(
        **{"batch": 8, "lr": 1e-3, "warmup": 0.0, "checkpoint_every": 2, "precision": "float32", **change}
    )
    given = batches(micro=settings.micro_batch) if given is None else given
    return Job(name="food", model=model, batches=given, loss=lm_loss, settings=settings, seed=5, folder=folder,
               optimizer=lambda m: make_optimizer(settings.optimizer, m, settings.lr, len(given)))  # fmt: skip


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what is asked -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "family", [*sorted(CAUSAL), "bert", "roberta", "distilbert", "electra", "albert", "modernbert"]
)
def test_the_head_sees_asked_positions_only_and_answers_as_the_plain_model(family: str) -> None:
    model = tiny(family)
    vocabulary = SMALL["vocab_size"]
    rows = [(row, (1, i)) for i, row in enumerate(blocks(3, 12, vocabulary).ids)]
    batch = collate_lm(rows, np.arange(5), "causal" if family in CAUSAL else "masked", MASK, vocabulary, 0.3)
    asked = len(batch["labels"])
    seen: list[tuple[int, ...]] = []
    inside = {id(m) for m in anatomy(model).base.modules()}
    for module in model.modules():
        if id(module) not in inside and module is not model and not list(module.children()):
            module.register_forward_hook(lambda m, args, out: seen.append(tuple(args[0].shape[:-1])))
    with torch.no_grad():
        logits = target_logits(model, batch)
        assert set(seen) == {(1, asked)}
        plain = model(input_ids=batch["input_ids"]).logits
    assert logits.shape == (asked, vocabulary)
    assert asked < batch["input_ids"].numel()
    torch.testing.assert_close(logits, plain.reshape(-1, vocabulary)[batch["positions"]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_the_causal_loss_is_hugging_faces_own(make: Any) -> None:
    model = make()
    batch = batches("causal")[0][0]
    with torch.no_grad():
        loss, items, _ = lm_loss(model, batch)
        plain = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    torch.testing.assert_close(loss / items, plain, rtol=1e-6, atol=0.0)


def test_the_masked_loss_is_hugging_faces_own() -> None:
    model = tiny_bert()
    batch = batches()[0][0]
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["positions"]] = batch["labels"]
    with torch.no_grad():
        loss, items, _ = lm_loss(model, batch)
        plain = model(input_ids=batch["input_ids"], labels=labels).loss
    torch.testing.assert_close(loss / items, plain, rtol=1e-6, atol=0.0)


class Grads(Method):
    """Keeps the finished gradients of the first step."""

    def on_gradients(self) -> None:
        if not hasattr(self, "kept"):
            self.kept = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def first_gradients(micro: int, settings: dict[str, Any] | None = None) -> tuple[dict[str, Tensor], Trained]:
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    work = job(model, micro_batch=micro, **(settings or {}))
    work.method = Grads(model, None, [])
    done = train(work)
    return work.method.kept, done


@pytest.mark.parametrize("micro", [4, 2])
def test_a_step_is_the_mean_over_asked_items_however_it_is_split(micro: int) -> None:
    """The micro-batches ask for unequal numbers of tokens: the mean of their means would be another number."""
    whole, done = first_gradients(8)
    split, again = first_gradients(micro)
    given = batches(micro=micro)[0]
    assert len({len(batch["labels"]) for batch in given}) > 1
    for name, grad in whole.items():
        torch.testing.assert_close(split[name], grad, rtol=1e-5, atol=1e-6)
    assert again.curve[0][1] == pytest.approx(done.curve[0][1], rel=1e-6)
    model = tiny_bert()
    with torch.no_grad():
        sums = [F.cross_entropy(target_logits(model, b), b["labels"], reduction="sum").item() for b in given]
    assert done.curve[0][1] == pytest.approx(sum(sums) / sum(len(b["labels"]) for b in given), rel=1e-6)


def test_a_penalty_counts_once_a_step_however_it_is_split() -> None:
    class Pull(Grads):
        def penalty(self) -> Tensor:
            return 3 * self.model.get_input_embeddings().weight.sum()

    for micro in (8, 2):
        model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        work = job(model, micro_batch=micro)
        work.method = Pull(model, None, [])
        train(work)
        plain, _ = first_gradients(micro)
        name = "bert.embeddings.word_embeddings.weight"
        torch.testing.assert_close(work.method.kept[name], plain[name] + 3, rtol=1e-5, atol=1e-5)


def test_text_of_which_nothing_can_be_asked_is_refused() -> None:
    empty = LMBatches(Blocks(np.full((8, 16), 1), np.arange(5), "made"), "masked", MASK, size(), 4, 2, 0)
    with pytest.raises(
        EunoeError, match="step 1 of food has no target tokens: its text holds only tokens that the tokenizer"
    ):
        train(job(tiny_bert(), empty))


# -- gradients -----------------------------------------------------------------------------------------------------------
class Norms(Grads):
    """Keeps the gradients as the optimizer meets them."""


def clipped(by: str, clip: float | None) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Gradients of the first step before and after clipping, and the norm that was recorded."""
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    work = job(model, clip=clip, clip_by=by)
    work.method = Grads(model, None, [])
    after: dict[str, Tensor] = {}
    made = work.optimizer

    def optimizer(m: nn.Module) -> torch.optim.Optimizer:
        built = made(m)

        def look(*_: Any) -> None:
            if not after:
                after.update({n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None})

        built.register_step_pre_hook(look)
        return built

    work.optimizer = optimizer
    done = train(work)
    return work.method.kept, after, done.curve[0][3]


def test_clipping_by_one_norm_over_all_weights_keeps_the_direction() -> None:
    before, after, message = clipped("global", 0.01)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in before.values()]))
    assert message == pytest.approx(float(norm), rel=1e-5)
    assert norm > 0.01
    for name, grad in before.items():
        torch.testing.assert_close(after[name], grad * 0.01 / norm, rtol=1e-3, atol=1e-9)


def test_clipping_tensor_by_tensor_leaves_small_gradients_alone() -> None:
    before, after, message = clipped("tensor", 0.05)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in before.values()]))
    assert message == pytest.approx(float(norm), rel=1e-5)
    small = [name for name, grad in before.items() if torch.linalg.vector_norm(grad) < 0.049]
    assert 0 < len(small) < len(before)
    for name, grad in before.items():
        expected = grad if name in small else grad * 0.05 / torch.linalg.vector_norm(grad)
        torch.testing.assert_close(after[name], expected, rtol=1e-3, atol=1e-9)


def test_without_clipping_gradients_stay_as_they_are() -> None:
    before, after, _ = clipped("global", None)
    assert same(before, after)


def test_one_process_may_train_with_one_precision_and_then_another() -> None:
    for precision in ("float32", "bf16", "float32"):
        model = tiny_bert()
        done = train(job(model, precision=precision))
        assert done.steps == 6
        assert all(p.dtype == torch.float32 for p in model.parameters())
        with torch.no_grad():
            assert model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.dtype == torch.float32


# -- a loss that is no number --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_update_and_says_where(tmp_path: Path, bad: float) -> None:
    model, kept, calls = tiny_bert(), {}, []

    class Spoilt(LMLoss):
        def __call__(self, m: nn.Module, batch: Any) -> LossSum:
            loss = super().__call__(m, batch)
            calls.append(1)
            if len(calls) == 4:
                kept.update(bits(m))
                return loss._replace(total=loss.total * bad)
            return loss

    work = job(model, folder=tmp_path / "steps")
    work.loss = Spoilt()
    with pytest.raises(EunoeError) as caught:
        train(work)
    message = str(caught.value)
    assert f"the loss is {bad}" in message
    assert "at step 4 of food; nothing was updated" in message
    assert f"the last good checkpoint is {tmp_path / 'steps' / 'step-00000002'}" in message
    assert "Lower the learning rate (now 0.001)" in message
    assert same(bits(model), kept)


def test_a_loss_that_is_no_number_at_once_says_that_there_is_no_checkpoint(tmp_path: Path) -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[7] = float("nan")
    with pytest.raises(
        EunoeError, match="at step 1 of food; nothing was updated, there is no earlier checkpoint of it"
    ):
        train(job(model, folder=tmp_path / "steps"))


# -- stopped and taken up ------------------------------------------------------------------------------------------------
class Stopping:
    """Batches that send this process a signal when a step is asked for, as a user would at that moment."""

    def __init__(self, given: LMBatches, step: int, number: int) -> None:
        self.given, self.step, self.number = given, step, number

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, step: int) -> list[dict[str, Tensor]]:
        if step == self.step:
            os.kill(os.getpid(), self.number)
        return self.given[step]


OPTIMIZERS = ["adamw", {"name": "recadam", "gamma": 100.0, "t0": 3}]


@pytest.fixture
def handlers() -> Iterator[None]:
    """The test's process must have its signal handlers back afterwards."""
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 3), (signal.SIGTERM, 5)])
def test_a_signal_saves_and_the_same_job_goes_on_to_the_same_bits(
    tmp_path: Path, number: int, step: int, optimizer: Any
) -> None:
    whole = tiny_bert()
    done = train(job(whole, optimizer=optimizer))
    name = signal.Signals(number).name
    with pytest.raises(
        Interrupted, match=f"stopped by {name} while learning food; saved after step {step + 1} of 6"
    ) as stopped:
        train(job(tiny_bert(), Stopping(batches(), step, number), tmp_path / "steps", optimizer=optimizer))
    assert stopped.value.code == 130
    assert (tmp_path / "steps" / f"step-{step + 1:08d}" / "manifest.json").is_file()
    model = tiny_bert()
    again = train(job(model, folder=tmp_path / "steps", optimizer=optimizer))
    assert same(bits(model), bits(whole))
    assert again.curve == done.curve
    assert (again.steps, again.tokens, again.notes) == (done.steps, done.tokens, [])


@pytest.mark.usefixtures("handlers")
def test_without_a_folder_a_stopped_job_says_that_it_starts_over() -> None:
    with pytest.raises(Interrupted, match="this short training starts over"):
        train(job(tiny_bert(), Stopping(batches(), 1, signal.SIGTERM)))


@pytest.mark.usefixtures("handlers")
def test_a_signal_after_the_last_look_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the bar is taken down, when no step is left to notice it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    monkeypatch.setattr("eunoe.progress.Bar.__exit__", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            train(job(tiny_bert()))
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_works_outside_the_main_thread() -> None:
    """Signals belong to the main thread: elsewhere none are caught."""
    collected: list[Trained] = []
    thread = threading.Thread(target=lambda: collected.append(train(job(tiny_bert()))))
    thread.start()
    thread.join()
    assert collected[0].steps == 6


def test_a_job_taken_up_from_any_step_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Not even the weights it starts from matter: all that trains is in the checkpoint."""
    whole = tiny_bert()
    train(job(whole, micro_batch=4))
    for step in range(6):
        with pytest.raises(Interrupted):
            train(
                job(tiny_bert(), Stopping(batches(micro=4), step, signal.SIGTERM), tmp_path / str(step), micro_batch=4)
            )
        model = tiny_bert(seed=1)
        train(job(model, folder=tmp_path / str(step), micro_batch=4))
        assert same(bits(model), bits(whole)), f"stopped after step {step}"
    other = tiny_bert(seed=1)
    train(job(other, micro_batch=4))
    assert not same(bits(other), bits(whole)), "else every start would end here"


# -- checkpoints ---------------------------------------------------------------------------------------------------------
def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    train(job(tiny_bert(), batches(steps=9), tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000006", "step-00000008"]


def test_a_broken_newest_checkpoint_is_passed_over_with_a_note(tmp_path: Path) -> None:
    whole = tiny_bert()
    train(job(whole))
    with pytest.raises(Interrupted):
        train(job(tiny_bert(), Stopping(batches(), 4, signal.SIGTERM), tmp_path))
    file = tmp_path / "step-00000005" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    model = tiny_bert()
    done = train(job(model, folder=tmp_path))
    assert len(done.notes) == 1
    assert "optimizer.safetensors was changed: its SHA-256 is" in done.notes[0]
    assert same(bits(model), bits(whole))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    train(job(tiny_bert(), batches(steps=2), tmp_path))
    loaded = checkpoint.load(tmp_path / "step-00000002").groups["weights"]
    with pytest.raises(EunoeError, match=r"does not fit this model: .* differ\. It belongs to another recipe"):
        put_back(tiny_bert(hidden_size=8), loaded, "the checkpoint")


def test_the_loss_falls_on_text_that_repeats_itself() -> None:
    ids = np.tile(np.arange(10, 26), (8, 1))
    given = LMBatches(Blocks(ids, np.arange(5), "made"), "masked", MASK, size(), 8, 40, 0)
    done = train(job(tiny_bert(), given, lr=0.02))
    assert done.curve[-1][1] < 0.5 * done.curve[0][1]
    assert done.tokens == 40 * 8 * 16
    assert [point[0] for point in done.curve] == list(range(1, 41))


def test_a_states_digest_does_not_depend_on_the_order_of_its_keys() -> None:
    """A state read back from a checkpoint has its keys sorted, and must still belong to the same training."""
    a, b = torch.arange(3.0), torch.arange(3.0, 6.0)
    assert checkpoint.digest({"b": b, "a": {"z": a, "y": b}}) == checkpoint.digest({"a": {"y": b, "z": a}, "b": b})
    assert checkpoint.digest({"b": b, "a": a}) != checkpoint.digest({"b": a, "a": b})


# -- early stopping, and what a method draws -------------------------------------------------------------------------
def test_a_training_that_was_enough_is_not_taken_further_when_it_is_resumed(tmp_path: Path) -> None:
    """A kill after the last step, or a signal at it: the step before the end may hold a checkpoint or not."""
    for every in (1, 2, 3):
        model, again = tiny_bert(), tiny_bert()
        for one in (model, again):
            work = job(one, folder=tmp_path / str(every), checkpoint_every=every)
            work.enough = lambda step: step == 3
            assert train(work).steps == 3
        assert same(bits(model), bits(again))


def test_what_a_method_draws_does_not_depend_on_what_the_process_drew_before() -> None:
    class Draws(Method):
        def begin(self, stage: Stage) -> None:
            self.drawn = [torch.rand(3)]

        def end(self, stage: Stage) -> None:
            self.drawn.append(torch.rand(3))

    drawn = []
    for before in (0, 7):
        torch.manual_seed(before)
        model = tiny_bert()
        work = job(model)
        work.method = Draws(model, None, [])
        torch.rand(before)
        train(work)
        drawn.append(torch.stack(work.method.drawn))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0][0], drawn[0][1])
