"""The walk from a recipe to a report: what it leaves, what it refuses, and that the proof of zero forgetting can fail."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor
from transformers import BertModel

from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.head import train_head
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.models.load import load_lm
from eunoe.plan import resolve
from eunoe.recipe import load_recipe, recipe_of
from eunoe.report.schema import Row, read_rows
from eunoe.verify import Finding, verify
from tests.tiny import sentences, tiny_bert, tiny_tokenizer
from tests.tiny_run import state, tiny_recipe, tiny_settings

CPT_LAST = Path("sequences/cpt.given.seed0/domains/1-money/final")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eunoe.progress.console.quiet", True)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe's file and the folder of its finished run; no test changes them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUNOE_CACHE", str(folder / "cache"))
        file = tiny_recipe(folder)
        run(load_recipe(file), folder / "out", "eunoe run tiny.yaml")
    return file, folder / "out"


def rows_of(out: Path, **match: Any) -> list[Row]:
    return [r for r in read_rows(out / "rows.jsonl") if all(getattr(r, k) == v for k, v in match.items())]


# -- what a run leaves -----------------------------------------------------------------------------------------------
def test_a_run_leaves_one_row_for_each_score_it_owes(made: tuple[Path, Path]) -> None:
    rows = read_rows(made[1] / "rows.jsonl")
    assert len({row.key for row in rows}) == len(rows)
    for seed in (0, 1):
        for method, learnt in [("base", ())] + [
            (m, ("sport", "money")[: i + 1]) for m in ("ncl", "cpt") for i in (0, 1)
        ]:
            own_rows = [r for r in rows if (r.method, r.seed, r.learnt) == (method, seed, learnt)]
            domains = learnt or ("sport", "money")
            expected = {(name, "lm_loss") for name in (*domains, "general")}
            expected |= {(name, metric) for name in domains for metric in ("accuracy", "macro_f1")}
            assert {(r.task, r.metric) for r in own_rows} == expected
    assert len(rows) == 2 * (7 + 2 * (4 + 7))
    for row in rows:
        assert row.run == "tiny"
        assert row.n > 0
        assert row.steps == (0 if row.method == "base" and not row.transfer else row.steps)
        assert (row.transfer == "finetune") == (row.metric != "lm_loss")
        assert row.metric == "lm_loss" or (row.n == 40 and 0 <= row.value <= 1)
    steps = {(r.method, bool(r.transfer)): r.steps for r in rows}
    assert steps == {("base", False): 0, ("base", True): 6, ("ncl", False): 4, ("ncl", True): 6,
                     ("cpt", False): 4, ("cpt", True): 6}  # fmt: skip


def test_matrix_and_report_are_made_from_the_rows(made: tuple[Path, Path]) -> None:
    out = made[1]
    with open(out / "matrix.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    rows = read_rows(out / "rows.jsonl")
    assert [(c["method"], c["task"], c["metric"], float(c["value"])) for c in cells] == [
        (r.method, r.task, r.metric, r.value) for r in rows
    ]
    place = {text: k for k, text in enumerate(dict.fromkeys((r.method, r.seed) for r in rows))}
    assert [place[r.method, r.seed] for r in rows] == sorted(place[r.method, r.seed] for r in rows), (
        "in the plan's order"
    )
    assert list(place) == [(method, seed) for seed in (0, 1) for method in ("base", "ncl", "cpt")]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "exactly 0" in page
    assert "eunoe run tiny.yaml" in page
    assert len((out / "sequences/ncl.given.seed1/domains/1-money/curve.csv").read_text().splitlines()) == 5
    assert not list(out.rglob("*.partial"))
    assert not list(out.rglob("steps"))
    assert load_recipe(out / "recipe.yaml") is not None, "the resolved recipe is a recipe"


def test_a_finished_run_is_left_alone_to_the_byte(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file, out = made
    before = state(out), {p: p.stat().st_mtime_ns for p in [out, *out.rglob("*")]}
    assert run(load_recipe(file), out, "eunoe run again") == out / "report.html"
    assert (state(out), {p: p.stat().st_mtime_ns for p in [out, *out.rglob("*")]}) == before


# -- what was forgotten ------------------------------------------------------------------------------------------------
def test_cpt_reads_an_earlier_domain_exactly_as_before_and_ncl_does_not(made: tuple[Path, Path]) -> None:
    out = made[1]
    for seed in (0, 1):
        for metric in ("lm_loss", "accuracy", "macro_f1"):
            then, now = (
                rows_of(out, method="cpt", seed=seed, task="sport", metric=metric, learnt=learnt)[0]
                for learnt in (("sport",), ("sport", "money"))
            )
            assert then.value == now.value
            assert then.detail == now.detail
        losses = rows_of(out, method="ncl", seed=seed, task="sport", metric="lm_loss")
        assert len({row.value for row in losses}) == 2
        general = {r.value for r in rows_of(out, method="cpt", seed=seed, task="general")}
        assert general == {r.value for r in rows_of(out, method="base", seed=seed, task="general")}
    base = rows_of(out, method="base", seed=0, task="sport", metric="lm_loss")[0]
    learnt = rows_of(out, method="cpt", seed=0, task="sport", metric="lm_loss")[0]
    assert learnt.value < base.value, "cpt must have learnt something, or keeping it proves nothing"


# -- verify -------------------------------------------------------------------------------------------------------------
def broken(findings: list[Finding]) -> list[tuple[str, str]]:
    """What of the states is broken; scores computed from a state that was changed are found too, and looked at in test_verify.py."""
    return [(f.sequence, f.domain) for f in findings if f.broken and f.domain != "rows"]


def test_verify_holds_for_cpt_and_says_that_ncl_changed(made: tuple[Path, Path]) -> None:
    findings = verify(made[1])
    assert len(findings) == 8 + 2
    assert [f.domain for f in findings if f.domain == "plugins" and f.equal] == ["plugins"] * 2
    assert not broken(findings)
    for f in findings:
        if f.domain == "plugins":
            continue
        assert f.promised == f.sequence.startswith("cpt")
        assert f.equal == (f.promised or f.domain == "money")
    changed = next(f for f in findings if f.sequence == "ncl.given.seed0" and f.domain == "sport")
    assert "outputs changed (by up to" in changed.text


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run that a test may tamper with."""
    return Path(shutil.copytree(made[1], tmp_path / "out"))


def tamper(checkpoint: Path, file: str, change: Callable[[dict[str, Tensor]], None], manifest: bool) -> None:
    """Change a checkpoint's tensors, with or without a manifest, and a mark of its cell, that say so."""
    tensors = safetensors.torch.load((checkpoint / file).read_bytes())
    change(tensors)
    data = safetensors.torch.save(tensors)
    (checkpoint / file).write_bytes(data)
    if manifest:
        loaded = json.loads((checkpoint / "manifest.json").read_text())
        loaded["sha256"][file] = hashlib.sha256(data).hexdigest()
        (checkpoint / "manifest.json").write_text(json.dumps(loaded))
        mark = json.loads((checkpoint.parent / "cell.json").read_text())
        name = next(name for name in mark["sha256"] if name.endswith("/final/manifest.json"))
        mark["sha256"][name] = hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
        (checkpoint.parent / "cell.json").write_text(json.dumps(mark))


def flip_first(tensors: dict[str, Tensor]) -> None:
    next(iter(tensors.values())).view(torch.int32).view(-1)[0] ^= 1


def test_verify_fails_when_one_bit_of_a_weight_is_changed(copied: Path) -> None:
    tamper(copied / CPT_LAST, "weights.safetensors", flip_first, manifest=False)
    findings = verify(copied)
    assert broken(findings) == [("cpt.given.seed0", "money")]
    assert any("was changed: its SHA-256 is" in f.text for f in findings)


def entries(made_recipe: Path, out: Path, read: bool) -> list[tuple[str, int]]:
    """One entry of each plug-in weight that the first domain reads (or does not)."""
    lm = load_lm(load_recipe(made_recipe).model)
    cpt = Cpt(lm.model, CptSettings(), ["sport", "money"])
    loaded = safetensors.torch.load_file(out / CPT_LAST.parent.parent / "0-sport/final/method.safetensors")
    cpt.load_state_dict({"finished": ["sport"], "running": None, "s": 400.0, "seed": 0, "masks": loaded["/masks"]})
    collected = []
    for name, entries_read in cpt.reads("sport").items():
        if "plugin" in name and (entries_read == read).any():
            collected.append((name, int((entries_read.reshape(-1) == read).nonzero()[0])))
    return collected


def test_verify_fails_on_any_weight_that_an_earlier_domain_reads_though_every_hash_fits(
    made: tuple[Path, Path], copied: Path
) -> None:
    chosen = entries(*made, read=True)
    assert (
        len(chosen) == 2 * 2 * 4
    )  # two layers, two plug-ins, two linear maps with bias: masks are bits, attacked below
    whole = (copied / CPT_LAST / "weights.safetensors").read_bytes()
    for name, entry in chosen[::5]:

        def flip(tensors: dict[str, Tensor], key: str = f"/{name}", entry: int = entry) -> None:
            tensors[key].view(torch.int32).view(-1)[entry] ^= 1

        tamper(copied / CPT_LAST, "weights.safetensors", flip, manifest=True)
        assert ("cpt.given.seed0", "sport") in broken(verify(copied)), name
        (copied / CPT_LAST / "weights.safetensors").write_bytes(whole)


def test_verify_does_not_mind_a_weight_that_no_domain_reads(made: tuple[Path, Path], copied: Path) -> None:
    """Else the last test could pass for a wrong reason: whatever changes is called broken."""
    name, _ = next((n, e) for n, e in entries(*made, read=False) if n.endswith("fc1.bias"))
    state_ = safetensors.torch.load_file(copied / CPT_LAST / "method.safetensors")["/masks"]
    lm = load_lm(load_recipe(made[0]).model)
    cpt = Cpt(lm.model, CptSettings(), ["sport", "money"])
    cpt.load_state_dict({"finished": ["sport", "money"], "running": None, "s": 400.0, "seed": 0, "masks": state_})
    unread = ~(cpt.reads("sport")[name] | cpt.reads("money")[name])

    def flip(tensors: dict[str, Tensor]) -> None:
        tensors[f"/{name}"].view(torch.int32)[unread.nonzero()[0]] ^= 1

    assert unread.any()
    tamper(copied / CPT_LAST, "weights.safetensors", flip, manifest=True)
    assert broken(verify(copied)) == [("cpt.given.seed0", "plugins")]  # the written copy has the bit as it was


@pytest.mark.parametrize("byte", [0, 7, -1])
def test_verify_fails_when_a_kept_mask_bit_is_flipped_though_every_hash_fits(copied: Path, byte: int) -> None:
    def flip(tensors: dict[str, Tensor]) -> None:
        tensors["/masks"][0, byte] ^= 1

    tamper(copied / CPT_LAST, "method.safetensors", flip, manifest=True)
    assert broken(verify(copied)) == [("cpt.given.seed0", "sport"), ("cpt.given.seed0", "plugins")]


@pytest.mark.parametrize("gone", ["0-sport/final/manifest.json", "0-sport", "1-money/final", "1-money", "."])
def test_verify_fails_when_a_checkpoint_is_gone(copied: Path, gone: str) -> None:
    path = CPT_LAST.parent.parent / gone
    shutil.rmtree(copied / path) if (copied / path).is_dir() else (copied / path).unlink()
    findings = broken(verify(copied))
    lost = {"0": ["sport"], "1": ["money"], ".": ["sport", "money"]}[gone[0]]
    assert findings == [("cpt.given.seed0", name) for name in lost]


def test_verify_fails_on_one_bit_of_the_written_plugins(copied: Path) -> None:
    file = copied / "sequences/cpt.given.seed1/plugins/adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(bytes(data))
    assert broken(verify(copied)) == [("cpt.given.seed1", "plugins")]


@pytest.mark.parametrize(
    "change",
    [{"precision": "bf16"}, {"micro_batch": 1}, {"precision": "bf16", "micro_batch": 2}],
    ids=["bf16", "accumulation", "both"],
)
def test_verify_holds_in_bf16_and_with_accumulation(tmp_path: Path, change: dict[str, Any]) -> None:
    settings = tiny_settings(tmp_path, methods=["cpt"], seeds=[0])
    settings["training"].update(change)
    settings["evaluation"] = {"blocks": 4, "batch": 8, "base": False, "matrix": "ends"}
    run(recipe_of(settings), tmp_path / "out")
    findings = verify(tmp_path / "out")
    assert [f.domain for f in findings] == ["sport", "money", "plugins"]
    assert not broken(findings)


def test_verify_holds_for_20_domains_and_fails_on_one_bit_of_the_first(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, methods=["cpt"], seeds=[0])
    corpora = [domain["corpus"] for domain in settings["domains"]]
    settings["domains"] = [{"name": f"d{i}", "corpus": corpora[i % 2]} for i in range(20)]
    settings["training"].update(steps=2, precision="bf16", micro_batch=2)
    settings["evaluation"] = {"blocks": 4, "batch": 8, "base": False}
    out = tmp_path / "out"
    run(recipe_of(settings), out)
    assert [f.equal for f in verify(out)] == [True] * 21

    def flip(tensors: dict[str, Tensor]) -> None:
        tensors["/masks"][0, 0] ^= 1

    tamper(out / "sequences/cpt.given.seed0/domains/19-d19/final", "method.safetensors", flip, manifest=True)
    assert broken(verify(out))[0] == ("cpt.given.seed0", "d0")


# -- what stands beside the states, whatever happened ---------------------------------------------------------------------
@pytest.mark.parametrize("where", ["facts", "publish"])
def test_a_stop_right_after_a_state_was_saved_loses_nothing(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as broken_once:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        broken_once.setattr(Cpt, where, full)
        with pytest.raises(OSError, match="No space"):
            run(load_recipe(made[0]), out, "eunoe run tiny.yaml")
    run(load_recipe(made[0]), out, "eunoe run tiny.yaml")
    assert state(out, ("times.jsonl",)) == state(made[1], ("times.jsonl",))


def test_epochs_of_few_steps_share_an_annealing_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one step to an epoch the masks would end as soft as they began."""
    settings = tiny_settings(tmp_path, methods=["cpt"], seeds=[0])
    settings["domains"] = settings["domains"][:1]
    settings["domains"][0].pop("task")
    settings["training"].update(batch=64, steps=None, epochs=5)
    settings["evaluation"] = {"blocks": 2, "batch": 8, "base": False}
    seen: list[float] = []
    before_step = Cpt.before_step

    def watch(self: Cpt, step: int, steps: int) -> None:
        before_step(self, step, steps)
        seen.append(self.active.s)

    monkeypatch.setattr(Cpt, "before_step", watch)
    run(recipe_of(settings), tmp_path / "out")
    assert 3 <= len(seen) <= 20
    assert seen == sorted(set(seen))


# -- what fine-tuning leaves, and several draws ------------------------------------------------------------------------------
def test_retention_and_several_few_shot_draws_of_end_tasks(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, seeds=[0])
    settings["evaluation"].update(retention=True, matrix="ends", base=False)
    for domain in settings["domains"]:
        domain["task"].update(shots=4, shots_seed=[1, 2])
    out = tmp_path / "out"
    run(recipe_of(settings), out)
    scores = rows_of(out, method="cpt", task="sport", metric="accuracy")
    assert [(r.learnt, r.shots_seed) for r in scores] == [
        (learnt, seed) for learnt in (("sport",), ("sport", "money")) for seed in (1, 2)
    ]
    assert scores[0].value == scores[2].value, "cpt's two draws are two scores, each of which stays"
    assert scores[1].value == scores[3].value
    for method in ("ncl", "cpt"):
        left = {
            r.metric: r
            for r in rows_of(out, method=method, task="money")
            if "@" in r.metric or r.metric == "anchor_distance"
        }
        assert set(left) == {"lm_loss@general", "cka@general", "anchor_distance"}
        assert left["anchor_distance"].value > 0
        assert 0 < left["cka@general"].value < 1
        before = rows_of(out, method="base", task="general")[0].value
        assert left["lm_loss@general"].detail is not None
        assert left["lm_loss@general"].detail["before"] == before
        assert left["lm_loss@general"].value != before
    whole = (out / "rows.jsonl").read_bytes()
    (out / "finished.json").unlink()
    (out / "rows.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))  # a kill tore the last cell
    run(recipe_of(settings), out)
    assert (out / "rows.jsonl").read_bytes() == whole


def test_all_missing_files_are_told_at_once_and_before_the_model_is_looked_for(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    settings["model"]["name"] = "no/such-model"
    settings["domains"][0]["corpus"]["source"] = "gone.txt"
    settings["domains"][1]["task"]["test"] = "gone.csv"
    with pytest.raises(
        EunoeError, match=r"(?s)2 sources are not there.*gone\.txt does not exist.*gone\.csv does not exist"
    ):
        run(recipe_of(settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cpts_table_names_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPT_DATA", str(tmp_path))
    with pytest.raises(EunoeError) as caught:
        run(load_recipe("cpt_table1"), tmp_path / "out")
    listed = re.findall(r"\S+\.(?:jsonl|txt)(?= does not exist)", str(caught.value))
    assert len(listed) == len(set(listed)) == 4 + 2 + 3 + 3 + 1


@pytest.fixture
def other_model(made: tuple[Path, Path]) -> Iterator[None]:
    """While the test lasts one bit of the pretrained model is another."""
    file = Path(yaml.safe_load((made[1] / "recipe.yaml").read_text())["model"]["name"]) / "model.safetensors"
    before = file.read_bytes()
    tensors = safetensors.torch.load(before)
    tensors["bert.embeddings.word_embeddings.weight"].view(torch.int32)[-1, 0] ^= 1
    file.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    yield
    file.write_bytes(before)


@pytest.mark.usefixtures("other_model")
def test_verify_fails_when_the_pretrained_model_is_another(copied: Path) -> None:
    assert broken(verify(copied)) == [(f"cpt.given.seed{s}", d) for s in (0, 1) for d in ("sport", "money")]


@pytest.mark.usefixtures("other_model")
def test_weights_replaced_between_the_kill_and_the_resume_are_refused(made: tuple[Path, Path], copied: Path) -> None:
    (copied / "finished.json").unlink()
    shutil.rmtree(copied / CPT_LAST.parent)
    with pytest.raises(EunoeError, match=r"what .* was begun with is no longer the same: model\."):
        run(load_recipe(made[0]), copied)
    assert not (copied / CPT_LAST).exists()


def test_verify_of_no_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EunoeError, match=r"is not a run folder: it has no recipe\.yaml\. Make one: eunoe run"):
        verify(tmp_path)


# -- what is refused ------------------------------------------------------------------------------------------------------
def test_the_folder_of_another_recipe_is_refused_with_what_differs(made: tuple[Path, Path]) -> None:
    file, out = made
    before = state(out)
    with pytest.raises(
        EunoeError, match=r"belongs to another recipe: .*; training\.lr: 0\.005 there, 0\.01 now\. Choose"
    ):
        run(load_recipe(file, [("training.lr", "0.01")]), out)
    assert state(out) == before


def test_a_folder_that_is_no_run_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("mine")
    with pytest.raises(EunoeError, match="exists and is not a run folder"):
        run(load_recipe(made[0]), tmp_path / "letters")
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["mine.txt"]


def test_a_second_process_on_the_same_folder_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    before = (
        "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", before, str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(EunoeError, match="another process is running in"):
            run(load_recipe(made[0]), out)
        assert [p.name for p in out.iterdir()] == [".lock"]
        other.communicate(b"")
    with open(out / ".lock", "a") as lock:  # it is free again
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def change_of(folder: Path, path: str, value: Any) -> dict[str, Any]:
    """The tiny recipe as data with one place changed."""
    data = tiny_settings(folder)
    *keys, last = path.split(".")
    inner: Any = data
    for key in keys:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("domains.1.corpus.source", "gone.txt", "gone.txt does not exist"),
        ("domains.1.task.test", "gone.csv", "gone.csv does not exist"),
        ("domains.1.task.label", "lable", "unknown column 'lable'. Did you mean label"),
        ("general.source", "gone.txt", "gone.txt does not exist"),
        ("model.name", "gone", "no model 'gone'"),
        ("training.block", 129, "recipe.training.block is 129, but .* reads at most 128 tokens at once"),
        ("transfer.max_length", 200, "recipe.transfer.max_length is 200, but .* reads at most 128"),
        ("methods", [{"name": "cpt", "training": {"block": 32}}], "all methods read the same blocks"),
        ("methods", [{"name": "cpt", "training": 5}], r"methods\[0\].training: expected keys with values, received 5"),
    ],
)
def test_what_cannot_be_read_leaves_no_run_folder(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(change_of(tmp_path, path, value)))
    with pytest.raises(EunoeError, match=message):
        run(load_recipe(file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_of_unknown_words_alone_is_refused(tmp_path: Path) -> None:
    """Nothing of it can be asked for, and a mean over nothing is no loss."""
    (tmp_path / "greek.txt").write_text("\n\n".join("αβγ δεζ ηθι κλμ " * 8 + str("νξο" * i) for i in range(40)))
    data = change_of(tmp_path, "domains.0.corpus.source", str(tmp_path / "greek.txt"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(EunoeError, match=r"95 % of the tokens of .* are unknown words"):
        run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- taken up where a kill left it ------------------------------------------------------------------------------------
def test_rows_cut_at_any_byte_are_made_again(made: tuple[Path, Path], copied: Path) -> None:
    """Also between the two rows of one end task, where both lines are whole but one score is missing."""
    file, out = made
    lines = (copied / "rows.jsonl").read_bytes().splitlines(keepends=True)
    pair = next(i for i in range(len(lines) - 8, 0, -1) if b'"macro_f1"' in lines[i])
    for cut in (sum(map(len, lines[:pair])), sum(map(len, lines[:-1])) + 30):
        (copied / "rows.jsonl").write_bytes((out / "rows.jsonl").read_bytes()[:cut])
        (copied / "matrix.csv").unlink()
        run(load_recipe(file), copied)
        assert state(copied, but=("times.jsonl",)) == state(out, but=("times.jsonl",))


@pytest.mark.parametrize("left", [".lock", "recipe.yaml.partial"])
def test_a_kill_in_the_first_moment_does_not_close_the_folder(
    made: tuple[Path, Path], tmp_path: Path, left: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / left).write_text("na")
    recipe = load_recipe(made[0], [("methods", "[ncl]"), ("seeds", "[0]"), ("evaluation.base", "false")])
    assert run(recipe, tmp_path / "out").is_file()


# -- an encoder without an LM head --------------------------------------------------------------------------------------
@pytest.fixture
def headless(tmp_path: Path) -> Path:
    """A recipe whose model is a BertModel saved without LM head."""
    encoder: BertModel = tiny_bert().bert
    encoder.save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    (tmp_path / "wiki.txt").write_text("\n\n".join(sentences(60, seed=7)))
    return tiny_recipe(
        tmp_path,
        model={"name": str(tmp_path / "encoder")},
        methods=["cpt"],
        seeds=[0],
        evaluation={"blocks": 4, "base": False},
    )


HEAD = (
    "head",
    "{corpora: [{source: SOURCE, valid_share: 0.0}], rank: 2, block: 16, batch: 4, steps: 6, checkpoint_every: 2}",
)


def with_head(file: Path, **change: str) -> Any:
    text = HEAD[1].replace("SOURCE", str(file.parent / "wiki.txt"))
    return load_recipe(
        file, [("model.head", "train"), ("head", text), *((k.replace("__", "."), v) for k, v in change.items())]
    )


def test_an_encoder_without_lm_head_is_refused_with_the_way_out(headless: Path) -> None:
    with pytest.raises(
        EunoeError, match=r"has no LM head: .*Give it one: set model\.head: train and say in the section `head`"
    ):
        run(load_recipe(headless), headless.parent / "out")
    assert not (headless.parent / "out").exists()


def test_a_head_is_trained_and_the_run_goes_on_with_it(headless: Path) -> None:
    out = headless.parent / "out"
    run(with_head(headless), out)
    assert sorted(p.name for p in (out / "head").iterdir()) == [
        "cell.json",
        "curve.csv",
        "patch.safetensors",
        "rows.jsonl",
    ]
    rows = read_rows(out / "rows.jsonl")
    assert [r.method for r in rows[:2]] == ["head-start", "head-trained"]
    assert rows[1].value < rows[0].value
    base = next(r for r in rows if r.method == "base" and r.task == "general")
    assert base.value == rows[1].value, "the run must read the head that was trained"
    assert {r.method for r in rows} == {"head-start", "head-trained", "base", "cpt"}
    assert not broken(verify(out))
    # a kill between the two rows of the head, and before the patch
    whole = state(out, but=("times.jsonl",))
    lines = (out / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (out / "rows.jsonl").write_bytes(lines[0])
    shutil.rmtree(out / "head")
    run(with_head(headless), out)
    assert state(out, but=("times.jsonl",)) == whole


def test_a_damaged_head_is_trained_again_to_the_same_bytes(headless: Path) -> None:
    out = headless.parent / "out"
    run(with_head(headless), out)
    whole = state(out, but=("times.jsonl",))
    file = out / "head/patch.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    run(with_head(headless), out)
    assert state(out, but=("times.jsonl",)) == whole


def test_bad_text_is_found_before_the_head_is_trained(headless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.plan.train_head", lambda *_: pytest.fail("the head was trained first"))
    for key in ("domains__1__corpus__source", "head__corpora__0__source"):
        with pytest.raises(EunoeError, match=r"gone\.txt does not exist"):
            run(with_head(headless, **{key: "gone.txt"}), headless.parent / "out")
        assert not (headless.parent / "out").exists()


def test_a_trained_head_is_not_trained_again(headless: Path) -> None:
    recipe = with_head(headless)
    folder = headless.parent / "head"
    assert recipe.head is not None
    assert train_head(recipe.model, recipe.head, folder, 0, {}) is not None
    before = state(folder)
    assert train_head(recipe.model, recipe.head, folder, 0, {}) is None
    assert state(folder) == before


def test_a_method_that_does_not_fit_the_model_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    for wrong, message in (
        ({"skip": False}, "skip is false, but a plug-in of placement sequential"),
        ({"ffn_size": 10**12}, "the method cpt cannot be made around .*Give it smaller sizes"),
    ):
        recipe = load_recipe(tiny_recipe(tmp_path, methods=["ncl", {"name": "cpt", **wrong}], seeds=[0]))
        with pytest.raises(EunoeError, match=message):
            run(recipe, tmp_path / "out", "")
        assert not (tmp_path / "out").exists()


def test_an_order_that_is_there_twice_is_learnt_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    orders = {"sm": ["sport", "money"], "ms": ["money", "sport"], "sm-again": ["sport", "money"]}
    plan = resolve(recipe_of(tiny_settings(tmp_path, methods=["ncl"], orders=orders, seeds=[0])))
    assert plan.repeated == {"sm-again": "sm"}
    assert [s.order_name for s in plan.sequences if s.method] == ["sm", "ms"]
    assert list(plan.recipe.orders) == list(orders)


def test_plug_ins_that_are_not_written_yet_break_no_promise_until_the_run_is_finished(copied: Path) -> None:
    shutil.rmtree(copied / "sequences/cpt.given.seed0/plugins")
    assert broken(verify(copied)) == [("cpt.given.seed0", "plugins")]
    (copied / "finished.json").unlink()
    assert broken(verify(copied)) == []


def test_where_the_pretrained_model_lay_is_no_part_of_the_promise(copied: Path) -> None:
    file = copied / "sequences/cpt.given.seed0/plugins/adapter_config.json"
    loaded = json.loads(file.read_text())
    file.write_text(json.dumps({**loaded, "base_model_name_or_path": "/elsewhere/minilm"}))
    assert broken(verify(copied)) == []
    file.write_text(json.dumps({**loaded, "s_max": 300.0}))
    assert broken(verify(copied)) == [("cpt.given.seed0", "plugins")]
