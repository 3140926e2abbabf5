"""The benchmarks import, and their counts of arithmetic are right: by hand on a small shape, and by torch's own counter."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import contention, jobs, posttraining
from benchmarks.__main__ import BENCHMARKS
from benchmarks.arithmetic import Shape, all_weights, as_released, plugins_alone
from benchmarks.cpt import ATTENTION, FFN, SHAPE, finish, released, speed
from benchmarks.measure import ratio, side_by_side
from benchmarks.protocol import REST, STAGES, Stages, ours, owed, pad, table, theirs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.models.heads import lm_loss
from eunoe.plan import resolve
from eunoe.recipe import LoopSettings, Recipe, load_recipe
from eunoe.report.schema import read_rows
from eunoe.train import Job, train
from tests.stages import stage
from tests.tiny import tiny_bert
from tests.tiny_run import tiny_recipe

SMALL = Shape(layers=2, width=4, inner=6, vocabulary=10, block=5)
ROWS = 3


def tiny(shape: Shape = SMALL) -> tuple[BertForMaskedLM, Cpt]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers, intermediate_size=shape.inner,
        num_attention_heads=1, max_position_embeddings=8, attn_implementation="eager",
    )  # fmt: skip
    model = BertForMaskedLM(config)
    return model, Cpt(model, CptSettings(attention_size=2, ffn_size=3), ["a", "b"])


def batches(steps: int) -> LMBatches:
    ids = np.random.default_rng(0).integers(4, 10, (6, SMALL.block)).astype(np.uint16)
    return LMBatches(Blocks(ids, np.array([0, 1, 2]), "random"), "masked", 3, 10, ROWS, steps, seed=0)


def job(steps: int, domain: str = "a") -> Job:
    model, method = tiny()
    return Job(
        name=domain, model=model, method=method, batches=batches(steps), loss=lm_loss, seed=0,
        settings=LoopSettings(batch=ROWS, steps=steps), optimizer=lambda m: make_optimizer("adamw", m, 1e-3, steps),
    )  # fmt: skip


def test_every_benchmark_can_be_called() -> None:
    assert {"cpt", "protocol"} <= set(BENCHMARKS)
    assert all(callable(main) for main in BENCHMARKS.values())


def test_the_counts_are_those_worked_by_hand() -> None:
    # a layer: 4 * 4 * 4 = 64 in projections, 2 * 4 * 6 = 48 between; attention 2 * 5 * 4 = 40; head 4 * 4 + 4 * 10 = 56
    assert (SMALL.projections, SMALL.layer, SMALL.attention, SMALL.head) == (64, 112, 40, 56)
    # forward 2 * (112 + 40) + 56 / 2 = 332 products, three times, 2 FLOP each
    assert all_weights(SMALL, 0.5) == 2 * 3 * 332
    # plug-ins 2 * 4 * (2 + 3) = 40 a layer. Forward 2 * (112 + 40 + 40) = 384; for inputs 2 * (112 + 80 + 40) = 464 less what lies
    # below the first plug-in's first product: 64 + 80 + 4 * 2 = 152; own 2 * 40 = 80; head twice 56 / 2
    assert plugins_alone(SMALL, 2, 3, 0.5) == 2 * (384 + 464 - 152 + 80 + 56)
    # as released: nothing is cut off below, every position passes the head twice, its dense layer has a gradient of its own
    assert as_released(SMALL, 2, 3) == 2 * (384 + 464 + 80 + 112 + 16)


def test_roberta_base_needs_what_was_reckoned_by_hand() -> None:
    # worked out before the benchmark was written: 510 and 643 MFLOP a token
    assert plugins_alone(SHAPE, ATTENTION, FFN, 0.15) / 1e6 == pytest.approx(510, rel=0.025)
    assert as_released(SHAPE, ATTENTION, FFN) / 1e6 == pytest.approx(643, rel=0.025)


def test_our_step_does_what_is_counted_and_no_more() -> None:
    model, method = tiny()
    method.begin(stage("a"))
    model.train()
    (batch,) = batches(1)[0]
    targets = len(batch["labels"]) / (ROWS * SMALL.block)
    with FlopCounterMode(display=False) as counted:
        lm_loss(model, batch)[0].backward()
    assert counted.get_total_flops() == round(plugins_alone(SMALL, 2, 3, targets) * ROWS * SMALL.block)


def test_the_released_step_does_what_is_counted() -> None:
    step = released(*tiny(), "a", batches(1))
    with FlopCounterMode(display=False) as counted:
        assert step() > 0
    assert counted.get_total_flops() == round(as_released(SMALL, 2, 3) * ROWS * SMALL.block)


def test_trainings_side_by_side_end_as_they_do_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def end(*_: object) -> None:
        """A method that draws after its last step, while another training, if it were let, would draw too."""
        time.sleep(0.05)
        drawn.append(torch.rand(4))

    monkeypatch.setattr(Cpt, "end", end)
    alone, first, second, longer = job(3), job(3), job(3), job(4)
    train(alone)
    called: list[int] = []
    columns = side_by_side([first, longer, second], lambda: called.append(1))
    assert [len(column) for column in columns] == [2, 3, 2, 2]
    assert len(called) == 3
    assert all(seconds > 0 for column in columns for seconds in column)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name])
        assert torch.equal(value, second.model.state_dict()[name])
    assert sum(torch.equal(drawn[0], other) for other in drawn[1:]) == 2


@pytest.mark.parametrize("units", [True, False])
def test_the_speed_of_the_step_is_told_beside_the_released_way_and_the_peak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], units: bool
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    asked: list[str] = []

    def small(lm: Any, method: Any, domain: str, steps: int, precision: str) -> Job:
        asked.append(precision)
        return job(steps)

    for name, value in (("model", lambda n: tiny()), ("job", small), ("batches", batches), ("can_half", lambda: units),
                        ("released", lambda *a: lambda: 1.0), ("peak_flops", lambda dtype: 1e9)):  # fmt: skip
        monkeypatch.setattr(f"benchmarks.cpt.{name}", value)
    speed()
    told = capsys.readouterr().out.splitlines()
    assert asked == (["float32", "bf16"] if units else ["float32"])
    assert units or "no units for bfloat16" in told.pop(0)
    assert [line.partition(":")[0] for line in told] == asked
    for line in told:
        assert re.search(r": [\d.]+ x \(.*tokens/s.*%? of the matrix-product peak \(1 GFLOP/s\)$", line), line


@pytest.mark.parametrize("units", [True, False])
def test_post_training_is_told_beside_the_plain_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], units: bool
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    shape = Shape(layers=1, width=12, inner=12, vocabulary=1100, block=8)
    models = {name: posttraining.Model(shape, 2, 2, roberta) for name, roberta in (("bert", False), ("roberta", True))}
    for name, value in {
        "MODELS": models,
        "ROUNDS": 1,
        "can_half": lambda: units,
        "peak_flops": lambda dtype: 1e9,
    }.items():
        monkeypatch.setattr(f"benchmarks.posttraining.{name}", value)
    BENCHMARKS["posttraining"]()
    told = capsys.readouterr().out.splitlines()
    assert units or "no units for bfloat16" in told.pop(0)
    ways = ("all weights train", "frozen model, CPT plug-ins train")
    rows = [f"{model}, {way}, {p}" for model in models for way in ways for p in ("float32", "bf16")[: 1 + units]]
    assert [line.partition(":")[0] for line in told if "plain loop" in line] == rows
    assert all(" x (" in line and ", aim " in line for line in told)
    assert sum("as fast as our own float32, aim 1.7 x" in line for line in told) == 4 * units


def test_a_step_beside_a_busy_process_is_told_against_one_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    sizes = {
        "vocab_size": 10,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 6,
    }
    for name, value in {"PAIRS": 2, "STEPS": 2, "SETTLE": 1, "ROWS": 2, "TOKENS": 3, "SIZES": sizes}.items():
        monkeypatch.setattr(contention, name, value)
    started: list[list[str]] = []
    monkeypatch.setattr(contention.subprocess, "Popen", lambda words: started.append(words) or Ended())
    pairs = contention.measure()
    assert [len(pair) for pair in pairs] == [2, 2]
    assert len(started) == 2, "one busy process in each pair"
    answer = subprocess.CompletedProcess([], 0, "talk\n[[0.2, 0.4], [0.2, 0.3], [0.1, 0.4]]\n")
    monkeypatch.setattr(contention.subprocess, "run", lambda words, **how: answer)
    BENCHMARKS["contention"]()
    assert "200 ms alone, 400 ms beside one busy process: 2.00 x (1.50 to 4.00), limit 2.5 x" in capsys.readouterr().out


class Ended:
    """A process that does nothing."""

    def kill(self) -> None: ...
    def wait(self) -> None: ...


class Calls(TorchDispatchMode):
    """Every call that reaches a kernel, with the shapes it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((str(func), *(str(tuple(a.shape)) for a in args if isinstance(a, Tensor))))
        return func(*args, **(kwargs or {}))


def test_a_step_makes_the_same_calls_however_many_domains_are_finished() -> None:
    def calls(finished: int) -> list[tuple[str, ...]]:
        work = job(3, str(finished))
        method = Cpt(tiny_bert(), CptSettings(), [str(i) for i in range(finished + 1)])
        finish(method, finished)
        marks: list[int] = []

        def mark(step: int) -> dict[str, float]:
            marks.append(len(made.seen))
            return {}

        with Calls() as made:
            train(replace(work, model=method.model, method=method, observe=mark))
        return made.seen[marks[0] : marks[1]]

    few, many = calls(1), calls(50)
    assert len(few) > 200
    assert few == many


def test_a_ratio_is_the_median_of_ratios() -> None:
    assert ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0]) == "3.00 x (2.00 to 4.00)"


def test_the_released_way_pads_every_row_to_its_length() -> None:
    batch: dict[str, Tensor] = {
        "input_ids": torch.tensor([[7, 8]]),
        "attention_mask": torch.tensor([[1, 1]]),
        "labels": torch.tensor([3]),
    }
    padded = pad(batch, pad_id=9, length=4)
    assert padded["input_ids"].tolist() == [[7, 8, 9, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0, 0]]
    assert padded["labels"].tolist() == [3]


def test_a_watched_function_counts_for_its_stage() -> None:
    stages = Stages()
    work = stages.watch("work", lambda n: sum(range(n)))
    assert work(100_000) == sum(range(100_000))
    once = stages["work"]
    assert once > 0
    work(100_000)
    assert stages["work"] > once
    assert stages.total == stages["work"]


def test_the_protocol_is_carried_out_both_ways_over_the_same_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("benchmarks.protocol.PADDED", 64)
    recipe = load_recipe(tiny_recipe(tmp_path, methods=["cpt"], seeds=[0]))
    assert isinstance(recipe, Recipe)
    mine = ours(recipe, tmp_path / "out")
    assert all(mine[stage] > 0 for stage in [*STAGES, REST])
    plan = resolve(recipe)
    plan.prepare(tmp_path / "other")
    released_way, found = theirs(plan)
    scored = {(*row.learnt, row.task) for row in read_rows(tmp_path / "out" / "rows.jsonl") if row.metric == "accuracy"}
    assert set(found) == {key for key in scored if len(key) > 1} == {(*work.learnt, work.task) for work in owed(plan)}
    assert all(0 <= accuracy <= 1 for accuracy in found.values())
    assert all(released_way[stage] > 0 for stage in STAGES if stage != "scoring held-out text")
    assert f"{released_way.total / mine.total:.1f} x" in list(table(mine, released_way))[-1]


def test_jobs_are_compared_with_one_process_that_has_all_cores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def seconds(*words: str) -> float:
        asked.append(words)
        return 30.0 if words[-4:] == ("--jobs", "1", "--threads", "2") else 20.0

    monkeypatch.setattr(jobs, "seconds", seconds)
    monkeypatch.setattr(jobs, "cores", lambda: 2)
    BENCHMARKS["jobs"]()
    assert asked[0][: -len(("--jobs", "1", "--threads", "2"))] == asked[1][: -len(("--jobs", "auto"))] == jobs.RECIPE
    assert asked[1][-2:] == ("--jobs", "auto")
    assert len(asked) == 2 * jobs.ROUNDS
    assert "2 threads 30 s, --jobs auto 20 s: 1.50 x (1.50 to 1.50), aim 1.3 x, limit 2 x" in capsys.readouterr().out
