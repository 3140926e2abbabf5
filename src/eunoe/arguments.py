"""The commands of ``eunoe`` and their options; cli.py carries them out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eunoe import __version__

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

NINE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
DEMOS = {"minilm": "demo", "smollm2": "demo_smollm2"}
COMMANDS = ("demo", "new", "plan", "run", "finetune", "glue", "report", "verify", "route", "import", "pretrain", "list")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eunoe",
        description="Teach a pretrained language model new domains without it forgetting, and show what it forgot.",
    )
    parser.add_argument("--version", action="version", version=f"eunoe {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in (_demo, _run, _new, _plan, _finetune, _glue, _report, _verify, _route, _imports, _pretrain, _lists):
        add(commands)
    return parser


# -- the commands, in the order in which --help names them ---
def _demo(commands: _Commands) -> None:
    demo = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="domains of news, learnt naively and with CPT, in a few minutes and without a network",
        epilog="Any key of the recipe can be given: --training.steps 8 --seeds '[0, 1, 2]'",
    )
    demo.add_argument("--model", default="minilm", metavar=f"{{{','.join(DEMOS)}}}",
                      help="an encoder and four domains (minilm, the default), or a small LLM and two (smollm2)")  # fmt: skip
    demo.add_argument("--out", type=Path, help="run folder (default runs/demo, or runs/demo_smollm2)")
    _sharing(demo)
    demo.set_defaults(overrides=True)


def _run(commands: _Commands) -> None:
    run = commands.add_parser(
        "run", allow_abbrev=False, help="carry out a recipe, or resume its run",
        epilog="Any key of the recipe can be given: --training.lr 5e-5 --domains.0.corpus.tokens 100000 "
               "--domains.'*'.task.test_rows null --seeds '[0, 1, 2]'",
    )  # fmt: skip
    run.add_argument("recipe", help="a YAML file, or the name of a shipped recipe (eunoe list recipes)")
    run.add_argument("--out", type=Path, help="run folder (default runs/NAME)")
    run.add_argument("--scale", help="a named set of overrides from the recipe's `scales`")
    _sharing(run)
    run.set_defaults(overrides=True)


def _new(commands: _Commands) -> None:
    new = commands.add_parser("new", help="write a recipe for the texts and labelled rows in a folder of your own")
    new.add_argument("folder", type=Path, metavar="FOLDER", help="each subfolder or text file of it is a domain")
    new.add_argument("--out", type=Path, help="recipe to write (default FOLDER.yaml, here)")
    new.add_argument("--model", default="minilm", help="minilm, a folder or a Hugging Face name (default minilm)")
    new.set_defaults(overrides=False)


def _plan(commands: _Commands) -> None:
    plan = commands.add_parser(
        "plan", allow_abbrev=False, help="what a recipe would read and do, and about how much time, memory and disk it takes",
        epilog="Any key of the recipe can be given, as for run. Nothing is written but the cache of tokenised text.",
    )  # fmt: skip
    plan.add_argument("recipe", help="a YAML file, or the name of a shipped recipe (eunoe list recipes)")
    plan.add_argument("--scale", help="a named set of overrides from the recipe's `scales`")
    _sharing(plan, relearn=False, ray=False)
    plan.set_defaults(overrides=True)


def _finetune(commands: _Commands) -> None:
    finetune = commands.add_parser(
        "finetune", allow_abbrev=False, help="fine-tune on labelled rows; scores over seeds, and how much of the model is preserved",
        epilog="Any key of the study can be given after the options; for RecAdam as shares of the run: "
               "--systems.recadam.optimizer.t0 0.25 --systems.recadam.optimizer.rise 0.2 --systems.recadam.optimizer.gamma 500",
    )  # fmt: skip
    finetune.add_argument(
        "--train", metavar="FILE", help="labelled rows: .csv, .tsv, .jsonl, .parquet or hub:OWNER/NAME"
    )
    finetune.add_argument("--test", metavar="FILE", help="labelled rows to score on")
    finetune.add_argument(
        "--unlabelled", metavar="FILE", help="more text of the task, for transfers that train on text first"
    )
    finetune.add_argument("--test-share", type=float, help="without --test: this share of --train is split off")
    finetune.add_argument("--text", help="column of the text (default text)")
    finetune.add_argument("--pair", help="column of a second text")
    finetune.add_argument("--label", help="column of the label (default label)")
    finetune.add_argument("--kind", choices=["classification", "regression", "choice", "tagging"],
                          help="regression reads numbers as labels, choice is multiple choice")  # fmt: skip
    finetune.add_argument(
        "--choices",
        nargs="+",
        metavar="COLUMN",
        help="with --kind choice: the column with the list of them, or several",
    )
    finetune.add_argument(
        "--layout",
        metavar="NAME",
        help="rows as a data set's own files hold them: race, story_cloze, snli, scitail or conll",
    )
    finetune.add_argument("--glue", metavar="TASK", help="a GLUE task from --data, instead of --train and --test")
    finetune.add_argument("--data", help="with --glue: folder of the official GLUE layout (default: the hub)")
    finetune.add_argument(
        "--plot-lambda",
        action="store_true",
        help="show RecAdam's lambda, pull and learning rate over the steps, also as OUT.lambda.html, and train nothing",
    )
    _fine_tuning(finetune, seeds=[0], epochs=20)
    _sharing(finetune, relearn=False)
    finetune.set_defaults(overrides=True)


def _glue(commands: _Commands) -> None:
    glue = commands.add_parser(
        "glue", allow_abbrev=False, help="fine-tune on GLUE's tasks: dev scores, test predictions to hand in",
        epilog="Any key of the study can be given after the options: --tasks.'*'.transfer '{steps: 3000}' "
               "--systems.recadam.optimizer.t0 0.25. A run for the papers' tables is a recipe: eunoe list recipes",
    )  # fmt: skip
    glue.add_argument(
        "--data", default="hub", help="folder of the official layout, data/CoLA/train.tsv (default: the hub)"
    )
    glue.add_argument(
        "--tasks", nargs="+", default=list(NINE), metavar="TASK", help=f"of {', '.join(NINE)} (default: all)"
    )
    glue.add_argument("--submit", action="store_true", help="also answer the test rows and write submission.zip")
    glue.add_argument(
        "--fill",
        action="store_true",
        help="with --submit, or --check ZIP: answer the tasks that are missing with a constant, as the server wants all files",
    )
    glue.add_argument("--check", type=Path, metavar="ZIP", help="only check a submission's files, headers and rows")
    _fine_tuning(glue, seeds=[0, 1, 2, 3, 4], epochs=3)
    _sharing(glue, relearn=False)
    glue.set_defaults(overrides=True)


def _report(commands: _Commands) -> None:
    report = commands.add_parser("report", help="make the page of a run again, or compare several runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument(
        "--out", type=Path, help="file of the page (default RUN/report.html; of several: ./report.html)"
    )
    report.add_argument(
        "--times", action="store_true", help="with how long each method took, which differs from run to run"
    )
    report.set_defaults(overrides=False)


def _verify(commands: _Commands) -> None:
    verify = commands.add_parser("verify", help="recompute what earlier domains read and compare the bits")
    verify.add_argument("run", type=Path, metavar="RUN")
    verify.set_defaults(overrides=False)


def _route(commands: _Commands) -> None:
    route = commands.add_parser("route", help="how often the plug-in with the least LM loss is the right one")
    route.add_argument("run", type=Path, metavar="RUN")
    route.add_argument(
        "--top", type=int, default=2, help="plug-ins that are mixed, by softmax of minus the losses (default 2)"
    )
    route.set_defaults(overrides=False)


def _imports(commands: _Commands) -> None:
    imports = commands.add_parser("import", help="turn a checkpoint of the CPT authors into a plug-in folder")
    imports.add_argument("what", metavar="{cpt}")
    imports.add_argument("file", type=Path, metavar="FILE", help="their state dict: pytorch_model.bin or .safetensors")
    imports.add_argument(
        "--model", required=True, help="the base model they started from: a folder or a Hugging Face name"
    )
    imports.add_argument("--domains", required=True, nargs="+", metavar="NAME", help="names of the domains, as learnt")
    imports.add_argument("--out", required=True, type=Path, help="plug-in folder to write")
    imports.add_argument(
        "--s-max", type=float, default=400.0, help="largest mask temperature it was trained with (400)"
    )
    imports.set_defaults(overrides=False)


def _pretrain(commands: _Commands) -> None:
    pretrain = commands.add_parser(
        "pretrain", allow_abbrev=False, help="train an AWD-LSTM language model from nothing, or resume its training",
        epilog="Any key of the recipe can be given: --epochs 10 --network.cell_size 500 --directions '[backward]'",
    )  # fmt: skip
    pretrain.add_argument("recipe", help="a YAML file, or the name of a shipped one (eunoe list pretrain)")
    pretrain.add_argument("--out", type=Path, help="folder to train in (default runs/NAME)")
    pretrain.add_argument("--scale", help="a named set of overrides from the recipe's `scales`")
    pretrain.set_defaults(overrides=True)


def _lists(commands: _Commands) -> None:
    lists = commands.add_parser("list", help="methods, models, transfers or recipes")
    lists.add_argument("what", metavar="{methods,models,transfers,recipes,pretrain}")
    lists.set_defaults(overrides=False)


# -- options that several have ---
def _sharing(parser: argparse.ArgumentParser, relearn: bool = True, ray: bool = True) -> None:
    """The options on who does the work, and what is done again."""
    parser.add_argument(
        "--jobs", metavar="N",
        help="processes that share the work; auto (the default): one a core for models below 100M weights, else one",
    )  # fmt: skip
    if ray:
        parser.add_argument("--ray", metavar="ADDRESS",
                            help="a Ray cluster does the work: auto (the one started on this machine) or HOST:PORT")  # fmt: skip
    if relearn:
        parser.add_argument(
            "--relearn", action="store_true", help="delete damaged states of stages, and learn those stages again"
        )


def _fine_tuning(parser: argparse.ArgumentParser, seeds: list[int], epochs: float) -> None:
    """The options that finetune and glue share."""
    name = parser.prog.split()[-1]
    parser.add_argument("--model", default="minilm", help="minilm, a folder or a Hugging Face name (default minilm)")
    parser.add_argument(
        "--transfer", nargs="+", default=["finetune"], metavar="NAME",
        help="how the model is brought to the task: finetune (the default) or another of `eunoe list transfers`; several are compared",
    )  # fmt: skip
    parser.add_argument(
        "--optimizer", nargs="+", metavar="NAME",
        help="adamw (the default of finetune), recadam or bert_adam; several are compared",
    )  # fmt: skip
    parser.add_argument("--epochs", type=float, help=f"passes over the training rows (finetune: default {epochs:g})")
    parser.add_argument("--batch", type=int, help="rows a step (finetune: default 20)")
    parser.add_argument(
        "--lr", type=float, help="highest learning rate (finetune: default 5e-5; it falls to 0 on a line)"
    )
    parser.add_argument("--max-length", type=int, help="tokens of a row (finetune: default 164)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=seeds,
        help=f"each is a fine-tuning of its own (default {' '.join(map(str, seeds))})",
    )  # fmt: skip
    parser.add_argument(
        "--general",
        metavar="FILE",
        help="general text (.txt, .jsonl, ...): measure on it how much of the pretrained model is preserved",
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help=f"study folder (default runs/{name})")


__all__ = ["COMMANDS", "DEMOS", "NINE", "parser"]
