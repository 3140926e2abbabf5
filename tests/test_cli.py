"""The command line: what people mistype and what their files lack ends in one clear line and exit code 2."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eunoe.cli import main
from tests.tiny_run import state, tiny_recipe, tiny_settings, write_text

SMALL: dict[str, Any] = {"methods": ["cpt"], "seeds": [0], "evaluation": {"blocks": 4, "batch": 8, "base": False}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run: nothing but the files of the tiny recipe."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def write_recipe(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    data = tiny_settings(folder, **SMALL)
    if change is not None:
        change(data)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / "tiny.yaml"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a refused command leaves on stderr."""
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("eunoe: ")]
    assert len(lines) == 1, err
    assert err.rstrip("\n").splitlines()[-1] == lines[0], "nothing may follow it"
    return lines[0]


# -- bad input ---------------------------------------------------------------------------------------------------------
def put(
    name: str, data: bytes, path: str = "domains.1.corpus.source"
) -> Callable[[Path], Callable[[dict[str, Any]], None]]:
    """A change that writes a file and names it in the recipe."""

    def prepare(folder: Path) -> Callable[[dict[str, Any]], None]:
        (folder / name).write_bytes(data)
        return lambda recipe: put_in(recipe, path, str(folder / name))

    return prepare


def put_in(recipe: dict[str, Any], path: str, value: Any) -> None:
    *keys, last = path.split(".")
    inner: Any = recipe
    for key in keys:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[last] = value


def setting(path: str, value: Any) -> Callable[[Path], Callable[[dict[str, Any]], None]]:
    return lambda folder: lambda recipe: put_in(recipe, path, value)


def family(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A model of a family that transformers knows and anatomy does not."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    from tests.tiny import size, tiny_tokenizer

    config = XLMRobertaConfig(
        vocab_size=size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    XLMRobertaForMaskedLM(config).save_pretrained(folder / "xlm")
    tiny_tokenizer().save_pretrained(folder / "xlm")
    return lambda recipe: put_in(recipe, "model.name", str(folder / "xlm"))


def cut_weights(folder: Path) -> Callable[[dict[str, Any]], None]:
    file = folder / "bert" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return lambda recipe: None


ROWS = b"text,label\ngood match,good\nbad match,bad\n"
TEXT = b"the match was good and the team had a good season\n\n" * 40
BAD: dict[str, tuple[Callable[[Path], Callable[[dict[str, Any]], None]], list[str]]] = {
    "missing file": (setting("domains.1.corpus.source", "sprot.txt"), ["sprot.txt does not exist", "Near it"]),
    "empty file": (put("empty.txt", b""), ["empty.txt is empty: no text", "Give text to learn from"]),
    "binary": (put("photo.txt", TEXT + b"\x89PNG\x00\x01"), ["photo.txt, line 81: a NUL byte; this is a binary file"]),
    "broken UTF-8": (put("latin.txt", TEXT + "Käse\n".encode("latin-1")), ["latin.txt, line 81: not UTF-8", "0xe4"]),
    "shorter than one block": (put("short.txt", b"one\n\ntwo words\n"), ["has", "tokens, fewer than one block of 16"]),
    "not UTF-8": (put("gbk.txt", "目录\n第一章 赔案处理的基本规定\n".encode("gb18030") * 40),
                  ["gbk.txt, line 2: not UTF-8", "Set encoding: gb18030"]),
    "unknown encoding": (setting("domains.1.corpus.encoding", "gb18031"), ["encoding: 'gb18031' is not an encoding of text"]),
    "line above the limit": (setting("domains.1.corpus.line_limit", 10), ["line 1: ", "more than 10 bytes", "raise line_limit"]),
    "a list for a text": (put("chat.jsonl", b'{"text": [{"role": "user", "content": "hi"}]}\n', "domains.0.task.train"),
                        ["chat.jsonl, line 1: column 'text' holds [{"]),
    "files of a file": (setting("domains.1.corpus.files", "*.md"), ["files is read only for a folder; leave it out"]),
    "labels alike": (put("rows.csv", ROWS + b"good match,good \n", "domains.0.task.train"),
                     ["rows.csv, line 4: the label 'good ' differs from 'good'", "only in white space"]),
    "deep JSON": (put("deep.jsonl", b'{"text": ' + b"[" * 99999, "domains.0.task.train"), ["deep.jsonl, line 1: not JSON"]),
    "no label column": (put("rows.csv", b"text,lable\na,b\n", "domains.0.task.train"),
                        ["rows.csv, line 2: unknown column 'label'. Did you mean lable?"]),
    "unseen label": (put("rows.csv", ROWS + b"dull match,dull\n", "domains.0.task.test"),
                     ["rows.csv, line 4: no training row has the label 'dull'. The 2 classes are 'bad', 'good'"]),
    "unknown method": (setting("methods", ["cbt"]), ["unknown method 'cbt'. Did you mean cpt?", "Allowed: adapter, "]),
    "unknown key": (setting("trainin", {}), ["unknown key in recipe 'trainin'. Did you mean training?"]),
    "unknown option": (setting("methods", [{"name": "cpt", "ffn_sise": 3}]), ["'ffn_sise'. Did you mean ffn_size?"]),
    "unknown transfer": (setting("transfer", "finetun"), ["unknown transfer 'finetun'. Did you mean finetune?"]),
    "unknown optimizer": (setting("training.optimizer", "recadm"), ["unknown optimizer 'recadm'. Did you mean recadam"]),
    "unknown schedule": (setting("training.schedule", "liner"), ["unknown schedule", "'liner'. Did you mean linear?"]),
    "unknown family": (family, ["unknown model family 'xlm-roberta'. Did you mean roberta?", "To add it, write one row into FAMILIES"]),
    "unread corpus key": (setting("domains.0.corpus.column", "text"), ["column is read only where files have columns"]),
    "unread task key": (setting("domains.0.task.dev", "dev.csv"), ["dev is read only with resplit; leave it out"]),
    "unread head": (setting("head", {"corpora": [{"source": "x"}]}), ["recipe.head is given but nothing reads it"]),
    "unread block": (setting("methods", [{"name": "cpt", "training": {"block": 8}}]), ["all methods read the same blocks"]),
    "cut weights": (cut_weights, ["the weights of", "cannot be read"]),
    "wrong type": (setting("training.lr", "fast"), ["recipe.training.lr", "received 'fast'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, message = BAD[case]
    write_recipe(folder)
    file = write_recipe(folder, prepare(folder)) if case != "cut weights" else folder / "tiny.yaml"
    if case == "cut weights":
        prepare(folder)
    before = state(folder)
    line = refused(capsys, "run", str(file), "--out", "out")
    for part in message:
        assert part in line
    assert state(folder) == before
    assert not (folder / "out").exists()


ODD_ROWS: dict[str, tuple[str, bytes, str]] = {
    "conversations": ("rows.jsonl", b'{"text": [{"role": "user"}], "label": 1}\n', "line 1: column 'text' holds [{"),
    "null": ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text": null, "label": 0}\n', "line 2: column 'text' is null"),
    "GB18030": ("rows.csv", "text,label\n很好,好\n".encode("gb18030"), "line 2: not UTF-8"),
    "alike": ("rows.csv", b"text,label\na,x\nb,y\nc,x \nd,y\n", "only in white space"),
    "NUL": ("rows.csv", b"text,label\na,x\0\n", "line 2: a NUL byte"),
    "semicolons": ("rows.csv", b"text;label\na;x\n", "put the line sep=; before it"),
    "deep": ("rows.jsonl", b"[" * 10**5, "line 1: not JSON"),
    "half a parquet": ("rows.parquet", b"PAR1", "cannot be read"),
    "half a gzip": ("rows.csv.gz", b"\x1f\x8b\x08\0", "broken gzip"),
}


@pytest.mark.parametrize("case", ODD_ROWS)
def test_odd_labelled_rows_end_finetune_in_one_line(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, data, message = ODD_ROWS[case]
    write_recipe(folder)
    (folder / name).write_bytes(data)
    line = refused(capsys, "finetune", "--train", name, "--test-share", "0.5", "--model", "bert", "--out", "out")
    assert message in line
    assert len(line) < 700
    assert not (folder / "out" / "rows.jsonl").exists()


def test_the_folder_of_another_recipe_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_recipe(folder)
    assert main(["run", str(file), "--out", "out"]) == 0
    before = state(folder)
    line = refused(capsys, "run", str(file), "--out", "out", "--training.steps", "5")
    assert "out belongs to another recipe:" in line
    assert "training.steps: 4 there, 5 now" in line
    assert state(folder) == before


def test_a_loss_that_is_no_number_names_step_domain_and_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_recipe(folder)
    words = ["run", str(file), "--out", "out", "--methods", "[ncl]", "--training.lr", "1e30", "--training.steps", "9",
             "--training.warmup", "0", "--training.checkpoint_every", "1"]  # fmt: skip
    line = refused(capsys, *words)
    assert "the loss is nan" in line or "gradient norm" in line
    assert (
        "of ncl · seed 0 · sport; nothing was updated, the last good checkpoint is out/sequences/ncl.given.seed0/"
        in line
    )
    assert "Lower the learning rate (now 1e+30)" in line
    step = int(line.split(" at step ")[1].split()[0])
    assert f"step-{step - 1:08d}" in line
    assert not list((folder / "out").rglob("*.partial"))


# -- out of space ------------------------------------------------------------------------------------------------------
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each write in turn: fsync fails as on a full disk; the last command ends as if nothing had been."""
    file = write_recipe(folder)
    assert main(["run", str(file), "--out", "whole"]) == 0
    real, left = os.fsync, [0]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    for writes in (0, 5, 10):
        left[0] = writes
        line = refused(capsys, "run", str(file), "--out", "out")
        assert "could not be written: No space left on device" in line
        assert "ree space" in line
        assert not list((folder / "out").rglob("*.partial"))
    left[0] = 10**6
    assert main(["run", str(file), "--out", "out"]) == 0
    but = (
        "times.jsonl",
        "environment.json",
        "report.html",
        "finished.json",
    )  # they hold the command, or a hash of one that does
    assert state(folder / "out", but) == state(folder / "whole", but)


def test_a_limit_on_file_size_is_told_without_a_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel's own refusal: no file may grow beyond 4096 bytes, and weights do."""
    file = write_recipe(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        line = refused(capsys, "run", str(file), "--out", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written: File too large" in line
    assert not list(folder.rglob("*.partial"))


# -- what is typed --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu", "demo"], "unknown command 'rnu'. Did you mean run? Allowed: demo, finetune, glue, import, list, new, plan, pretrain,"),
        (["list", "method"], "unknown list 'method'. Did you mean methods?"),
        (["run", "dmo"], "unknown recipe 'dmo'. Did you mean demo?"),
        (["run", "demo", "--trainin.lr", "1"], "unknown key in recipe 'trainin'. Did you mean training?"),
        (["run", "demo", "--training.lr"], "--training.lr needs a value"),
        (["run", "demo", "twice"], "did not expect 'twice'"),
        (["run", "demo", "--scale", "ful"], "unknown scale 'ful'"),
        (["run", "demo", "--sca", "full"], "unknown key in recipe 'sca'"),
        (["verify", "runs/none"], "runs/none is not a run folder: it has no recipe.yaml. Make one: eunoe run"),
        (["verify", "runs/none", "--fast"], "eunoe verify does not know '--fast'. See: eunoe verify --help"),
        (["report", "runs/none"], "runs/none is not a folder. Make a run first"),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_answered_with_what_is_meant(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words)
    assert list(folder.iterdir()) == []


def test_lists_name_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    from eunoe.methods import METHODS
    from eunoe.models.anatomy import FAMILIES
    from eunoe.recipe import shipped_recipes
    from eunoe.transfer import TRANSFERS

    tables = {"methods": METHODS, "transfers": TRANSFERS, "recipes": shipped_recipes(), "models": ["minilm", *FAMILIES]}
    for what, names in tables.items():
        assert main(["list", what]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        if what == "methods":
            assert lines.pop(0).startswith("method  ")
        if what != "models":
            assert [line.split()[0] for line in lines] == list(names)
        for name in names:
            assert name in out
        assert all(len(line.split(maxsplit=1)) == 2 for line in lines), "each has a line about it"


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


# -- the whole way -------------------------------------------------------------------------------------------------------
def test_run_report_and_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_recipe(folder, **{**SMALL, "methods": ["ncl", "cpt"]})
    assert main(["run", str(file), "--out", "out", "--training.steps", "3"]) == 0
    out, err = capsys.readouterr()
    assert "report: out/report.html" in out
    assert re.search(r"cpt(, which)?\s+(learnt\s+\S+\s[^;]*)?forgot\s+exactly\s+0", out)
    before = state(folder / "out")
    assert main(["run", str(file), "--out", "out", "--training.steps", "3"]) == 0
    assert "out is finished" in capsys.readouterr().err
    assert main(["report", "out"]) == 0
    assert state(folder / "out") == before, "the page is made of what the folder holds"
    assert main(["verify", "out"]) == 0
    printed = capsys.readouterr().out
    assert "all 3 promises of zero forgetting hold, bit for bit." in printed
    assert "no promise" in printed
    last = folder / "out/sequences/cpt.given.seed0/domains/1-money/final/weights.safetensors"
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert main(["verify", "out"]) == 1
    printed, err = capsys.readouterr()
    assert "BROKEN" in printed
    assert "promises are broken" in err


def test_an_interrupted_run_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_recipe(folder)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eunoe.plan.lm_score", interrupt)
    assert main(["run", str(file), "--out", "out"]) == 130
    assert "Run the same command to resume from the last checkpoint" in capsys.readouterr().err


def test_text_may_stand_anywhere(folder: Path) -> None:
    """A home-made corpus in the folder one works in, named by a relative path."""
    write_text(folder / "mine.txt", seed=3)
    file = write_recipe(folder, setting("domains.0.corpus.source", "mine.txt")(folder))
    assert main(["run", str(file)]) == 0
    assert (folder / "runs" / "tiny" / "report.html").is_file()


# -- start-up ------------------------------------------------------------------------------------------------------------
HEAVY = ("torch", "transformers", "numpy", "yaml", "rich", "pydantic", "matplotlib", "accelerate")


@pytest.mark.parametrize(
    "code",
    ["import eunoe; eunoe.EunoeError", "from eunoe.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
     "from eunoe.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass",
     "from eunoe.cli import main; main(['rnu'])"],
)  # fmt: skip
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    watched = f"{code}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines()[-1] == ""
