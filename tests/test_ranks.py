"""Two processes on one run, joined by gloo as ``torchrun`` joins them: one result, proved, and the same again after a kill.

And what other launchers, or half of one, left in the environment: refused or overruled by name.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import sys
import time
from contextlib import nullcontext
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml
from transformers import AutoModelForMaskedLM

import eunoe
import eunoe.precision
from eunoe.cli import main
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from eunoe.verify import verify
from tests.faults.moments import counted, signal_at
from tests.faults.test_kill import EXEMPT, KILLS, forks
from tests.pairs import ended, start_pair
from tests.tiny_run import state, tiny_recipe, tiny_settings

__all__ = ["forks"]
pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch with gloo")


def one_of_two(rank: int, recipe: str, out: str, moments: tuple[int, int], which: int, slow: bool) -> None:
    """``eunoe run`` in one of two, which is sent a signal at its moment (0: never; then it says how many there were).

    ``slow``: the second one sees the marks of what is done late, as over a network.
    """
    if slow and rank:
        real = Path.read_bytes

        def late(self: Path) -> bytes:
            time.sleep(0.2 * (self.name == "cell.json"))
            return real(self)

        Path.read_bytes = late  # type: ignore[method-assign]
    os.environ.update(
        EUNOE_CACHE=str(Path(recipe).parent / "cache"), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    os.chdir(Path(out).parent)
    with nullcontext() if moments[rank] else counted(Path(f"moments-{rank}")):
        if moments[rank]:
            signal_at(moments[rank], which)
        code = main(["run", recipe, "--out", Path(out).name])
    sys.exit(code)


def start(
    forks: ForkServerContext, recipe: Path, out: Path, moments: tuple[int, int] = (0, 0), which: int = signal.SIGKILL, slow: bool = False
) -> list[BaseProcess]:  # fmt: skip
    return start_pair(forks, out.parent, one_of_two, str(recipe), str(out), moments, which, slow)


def recipe_without_chance(folder: Path) -> Path:
    """No dropout, which each process draws for itself: what is left is the order of sums."""
    made = tiny_recipe(
        folder, seeds=[0], evaluation={"blocks": 6, "batch": 8, "base": False},
        training={"block": 16, "batch": 8, "micro_batch": 4, "steps": 6, "lr": 0.005, "checkpoint_every": 2},
    )  # fmt: skip
    made.write_text(made.read_text().replace("dropout: 0.1", "dropout: 0.0"))
    return made


@pytest.mark.slow
def test_two_processes_end_where_one_does_are_proved_and_survive_kills(
    forks: ForkServerContext, tmp_path: Path
) -> None:
    recipe = recipe_without_chance(tmp_path)
    one, two, killed = tmp_path / "one" / "out", tmp_path / "two" / "out", tmp_path / "killed" / "out"
    run(load_recipe(str(recipe)), one)
    ended(start(forks, recipe, two, slow=True), two.parent)
    alone, shared = read_rows(one / "rows.jsonl"), read_rows(two / "rows.jsonl")
    assert [(row.method, row.learnt, row.task, row.metric) for row in alone] == [
        (row.method, row.learnt, row.task, row.metric) for row in shared
    ]
    for a, b in zip(alone, shared, strict=True):
        if a.metric == "lm_loss":
            assert a.value == pytest.approx(b.value, abs=2e-3)
    findings = verify(two)
    assert {f.promised for f in findings} == {True, False}
    assert not any(f.broken for f in findings)
    model = AutoModelForMaskedLM.from_pretrained(next(tmp_path.glob("*/config.json")).parent)
    eunoe.load_plugins(model, two / "sequences" / "cpt.given.seed0" / "plugins")

    chance = random.Random(3)
    for kill in range(max(2, KILLS - 1)):  # in turn one of them; each life finds what the ones before left
        victim = 1 - kill % 2
        many = int((two.parent / f"moments-{victim}").read_text())
        moments = [0, 0]
        moments[victim] = round(chance.uniform(0.1, 0.6) * many)
        codes = [2, 2]
        codes[victim] = -signal.SIGKILL
        said = ended(start(forks, recipe, killed, (moments[0], moments[1])), killed.parent, codes)
        lines = said[1 - victim].splitlines()
        assert len(lines) == 1, said
        assert re.fullmatch(rf"eunoe: process {1 - victim} of 2 stops, as another one ended or gives no sign\. What that one said "
                            r"last .* What is done is kept; run the same command to resume\.", lines[0])  # fmt: skip
    ended(start(forks, recipe, killed, slow=True), killed.parent)
    assert state(killed, EXEMPT) == state(two, EXEMPT)


def on_a_machine(rank: int, recipe: str, out: str, units: tuple[bool, bool]) -> None:
    """``eunoe run`` in one of two, on machines with units for bfloat16, or not."""
    eunoe.precision.can_half = lambda: units[rank]
    one_of_two(rank, recipe, out, (0, 0), 0, False)


@pytest.mark.slow
def test_two_machines_compute_in_the_precision_of_the_first(forks: ForkServerContext, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, seeds=[0], methods=["ncl"], evaluation={"blocks": 4, "batch": 8, "base": False, "matrix": "ends"},
        training={"block": 16, "batch": 4, "steps": 2, "lr": 0.005},
    )  # fmt: skip
    states = []
    for units in ((True, True), (True, False)):
        out = tmp_path / f"units-{units[1]}" / "out"
        ended(start_pair(forks, out.parent, on_a_machine, str(recipe), str(out), units), out.parent)
        states.append(state(out, EXEMPT))
        assert yaml.safe_load((out / "recipe.yaml").read_text())["training"]["precision"] == "bf16"
    assert states[0] == states[1]


@pytest.mark.slow
def test_what_the_first_process_finds_wrong_both_say(forks: ForkServerContext, tmp_path: Path) -> None:
    """It alone looks at the run folder: the other one would wait for it."""
    recipe = recipe_without_chance(tmp_path)
    taken = tmp_path / "taken" / "out"
    taken.mkdir(parents=True)
    with open(taken / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = ended(start(forks, recipe, taken), taken.parent, (2, 2))
    assert {line for text in said for line in text.splitlines()} == {
        "eunoe: another process is running in out. Wait for it, or choose another --out."
    }


def test_more_processes_than_blocks_in_a_micro_batch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(recipe_without_chance(tmp_path)))
    for name, value in {
        "WORLD_SIZE": "5",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EunoeError, match=r"5 processes.*smallest holds 4 blocks"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's variable is set."""
    for name in os.environ:
        if name.startswith(("ACCELERATE_", "OMPI_", "PMI_", "MV2_", "MASTER_")) or name in (
            "RANK",
            "LOCAL_RANK",
            "WORLD_SIZE",
        ):
            monkeypatch.delenv(name)
    return monkeypatch


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
REFUSED = {
    "FSDP": ({"ACCELERATE_USE_FSDP": "true"}, r"ACCELERATE_USE_FSDP is 'true', but FSDP is not supported yet.*Unset"),
    "FSDP of two": ({**TORCHRUN, "ACCELERATE_USE_FSDP": "1"}, r"ACCELERATE_USE_FSDP is '1'"),
    "DeepSpeed": ({"ACCELERATE_USE_DEEPSPEED": "True"}, r"ACCELERATE_USE_DEEPSPEED is 'True', but DeepSpeed is not supported"),
    "Megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, r"ACCELERATE_USE_MEGATRON_LM .* Megatron-LM is not supported"),
    "parallelism": ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, r"ACCELERATE_USE_PARALLELISM_CONFIG .* not supported"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "4"}, r"OMPI_COMM_WORLD_SIZE is '4': this was started by mpirun.*torchrun"),
    "another MPI": ({"PMI_SIZE": "2"}, r"PMI_SIZE is '2'"),
    "MVAPICH": ({"MV2_COMM_WORLD_SIZE": "2"}, r"MV2_COMM_WORLD_SIZE is '2'"),
    "RANK alone": ({"RANK": "1"}, r"RANK is set \('1'\) but WORLD_SIZE is not.*Unset it"),
    "RANK 0 alone": ({"RANK": "0"}, r"RANK is set \('0'\) but WORLD_SIZE is not"),
    "LOCAL_RANK alone": ({"LOCAL_RANK": "0"}, r"LOCAL_RANK is set \('0'\) but WORLD_SIZE is not"),
    "no address": ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, r"MASTER_ADDR, MASTER_PORT are not set"),
    "WORLD_SIZE alone": ({"WORLD_SIZE": "2"}, r"RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set.*torchrun"),
    "no LOCAL_RANK": ({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"}, r"LOCAL_RANK is not set"),
    "one, joined nowhere": ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, r"MASTER_ADDR, MASTER_PORT are not set"),
    "an empty address": ({**TORCHRUN, "MASTER_ADDR": ""}, r"MASTER_ADDR is not set"),
    "an empty size": ({"WORLD_SIZE": ""}, r"WORLD_SIZE is '', not a whole number"),
    "an empty rank": ({**TORCHRUN, "RANK": ""}, r"RANK is '', not a whole number"),
    "a size in words": ({"WORLD_SIZE": "two"}, r"WORLD_SIZE is 'two', not a whole number"),
    "a half": ({**TORCHRUN, "WORLD_SIZE": "2.5"}, r"WORLD_SIZE is '2.5', not a whole number"),
    "a local rank in words": ({**TORCHRUN, "LOCAL_RANK": "first"}, r"LOCAL_RANK is 'first', not a whole number"),
    "a port in words": ({**TORCHRUN, "MASTER_PORT": "http"}, r"MASTER_PORT is 'http', not a whole number"),
    "an MPI size in words": ({"PMI_SIZE": "many"}, r"PMI_SIZE is 'many', not a whole number"),
    "size 0": ({**TORCHRUN, "WORLD_SIZE": "0"}, r"WORLD_SIZE is 0 and RANK is 0"),
    "a rank too high": ({**TORCHRUN, "RANK": "2"}, r"WORLD_SIZE is 2 and RANK is 2: ranks go from 0 to WORLD_SIZE - 1"),
    "a rank below 0": ({**TORCHRUN, "RANK": "-1"}, r"WORLD_SIZE is 2 and RANK is -1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe(tmp_path_factory.mktemp("tiny"), methods=["ncl"], seeds=[0])


@pytest.mark.parametrize("case", REFUSED)
def test_half_a_launcher_and_those_not_supported_are_refused_before_anything_is_written(
    case: str, tiny: Path, tmp_path: Path, nothing_set: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, message = REFUSED[case]
    for name, value in given.items():
        nothing_set.setenv(name, value)
    assert main(["run", str(tiny), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def study(folder: Path) -> Path:
    settings = tiny_settings(folder)
    made = {
        "name": "study", "model": settings["model"], "seeds": [0], "tasks": [{"name": "sport", **settings["domains"][0]["task"]}],
        "systems": {"adamw": {"name": "finetune", "epochs": 1, "batch": 8, "lr": 0.002, "max_length": 32}},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(made))
    return folder / "study.yaml"


@pytest.mark.parametrize(("words", "message"), [
    (["run", "study.yaml", "--out", "out"], r"WORLD_SIZE is 2, but a study is not divided between processes of torchrun"),
    (["finetune", "--train", "sport_train.csv", "--out", "out"], r"WORLD_SIZE is 2, but eunoe finetune is not divided"),
    (["glue", "--out", "out"], r"WORLD_SIZE is 2, but eunoe glue is not divided"),
    (["verify", "run"], r"WORLD_SIZE is 2, but eunoe verify is not divided"),
    (["report", "run"], r"WORLD_SIZE is 2, but eunoe report is not divided"),
    (["run", "tiny.yaml", "--out", "out", "--jobs", "2"], r"--jobs is 2, but torchrun started 2 processes.*Leave --jobs out"),
])  # fmt: skip
def test_what_torchrun_cannot_divide_is_refused(
    words: list[str], message: str, tmp_path: Path, nothing_set: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path)
    tiny_recipe(tmp_path)
    nothing_set.chdir(tmp_path)
    for name, value in TORCHRUN.items():
        nothing_set.setenv(name, value)
    capsys.readouterr()
    assert main(words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


OVERRULED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_CLIPPING": "0.0001",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
}


def test_what_accelerate_would_read_is_overruled_by_the_recipe_and_said(
    tiny: Path, tmp_path: Path, nothing_set: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing_set.setattr("eunoe.progress.console.quiet", False)
    assert main(["run", str(tiny), "--out", str(tmp_path / "plain")]) == 0
    capsys.readouterr()
    for name, value in OVERRULED.items():
        nothing_set.setenv(name, value)
    assert main(["run", str(tiny), "--out", str(tmp_path / "with")]) == 0
    said = capsys.readouterr().err.splitlines()
    for name, value in OVERRULED.items():
        assert len([line for line in said if line.startswith(f"{name}={value} is overruled by ")]) == 1, said
    but = (*EXEMPT, "environment.json", "report.html", "finished.json")  # they hold the command, and --out differs
    assert state(tmp_path / "with", but) == state(tmp_path / "plain", but)


def test_values_that_change_nothing_are_not_told(
    tiny: Path, tmp_path: Path, nothing_set: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``accelerate launch`` sets them where nothing was asked for."""
    for name, value in zip(OVERRULED, ("1", "no", "none", "no"), strict=True):
        nothing_set.setenv(name, value)
    nothing_set.setenv("ACCELERATE_USE_FSDP", "false")
    assert main(["run", str(tiny), "--out", str(tmp_path / "out")]) == 0
    assert "overruled" not in capsys.readouterr().err
