"""The command ``eunoe``. ``--help`` answers at once: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eunoe import __version__, ranks, stop
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.lookup import lookup, unknown

if TYPE_CHECKING:
    from eunoe.recipe import Study

NINE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
DEMOS = {"minilm": "demo", "smollm2": "demo_smollm2"}
COMMANDS = ("demo", "new", "plan", "run", "finetune", "glue", "report", "verify", "route", "import", "pretrain", "list")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 2 the user can correct it, 130 stopped with its place saved)."""
    words = list(sys.argv[1:] if argv is None else argv)
    # before torch is loaded: threads that spin while they wait make every step slow as soon as another process runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with stop.watching(command=argv is None, at_once=argv is None):
            return _main(words)
    except EunoeError as error:
        print(f"eunoe: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("eunoe: stopped. Run the same command to resume from the last checkpoint.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print(
                f"eunoe: {visible(error.filename, 80)} is too long a name for a file or folder. Give a shorter one.",
                file=sys.stderr,
            )
            return 2
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        print(f"eunoe: {error.filename or 'a file'} could not be written: {error.strerror}. Nothing finished is lost; free "
              "space and run the same command again.", file=sys.stderr)  # fmt: skip
        return 2


def _main(words: list[str]) -> int:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise unknown(words[0], COMMANDS, "command")
    args, rest = _parser().parse_known_args(words)
    if args.command is None:
        _parser().print_help()
        return 0
    if rest and not args.overrides:
        raise EunoeError(f"eunoe {args.command} does not know {rest[0]!r}. See: eunoe {args.command} --help")
    if args.command not in ("demo", "run", "list"):
        ranks.check()
        ranks.refuse_several(f"eunoe {args.command}")
    args.words = shlex.join(["eunoe", *words])
    code: int = args.go(args, rest)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eunoe",
        description="Teach a pretrained language model new domains without it forgetting, and show what it forgot.",
    )
    parser.add_argument("--version", action="version", version=f"eunoe {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

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
    demo.set_defaults(go=_demo, overrides=True)

    run = commands.add_parser(
        "run", allow_abbrev=False, help="carry out a recipe, or resume its run",
        epilog="Any key of the recipe can be given: --training.lr 5e-5 --domains.0.corpus.tokens 100000 "
               "--domains.'*'.task.test_rows null --seeds '[0, 1, 2]'",
    )  # fmt: skip
    run.add_argument("recipe", help="a YAML file, or the name of a shipped recipe (eunoe list recipes)")
    run.add_argument("--out", type=Path, help="run folder (default runs/NAME)")
    run.add_argument("--scale", help="a named set of overrides from the recipe's `scales`")
    _sharing(run)
    run.set_defaults(go=_run, overrides=True)

    new = commands.add_parser("new", help="write a recipe for the texts and labelled rows in a folder of your own")
    new.add_argument("folder", type=Path, metavar="FOLDER", help="each subfolder or text file of it is a domain")
    new.add_argument("--out", type=Path, help="recipe to write (default FOLDER.yaml, here)")
    new.add_argument("--model", default="minilm", help="minilm, a folder or a Hugging Face name (default minilm)")
    new.set_defaults(go=_new, overrides=False)

    plan = commands.add_parser(
        "plan", allow_abbrev=False, help="what a recipe would read and do, and about how much time, memory and disk it takes",
        epilog="Any key of the recipe can be given, as for run. Nothing is written but the cache of tokenised text.",
    )  # fmt: skip
    plan.add_argument("recipe", help="a YAML file, or the name of a shipped recipe (eunoe list recipes)")
    plan.add_argument("--scale", help="a named set of overrides from the recipe's `scales`")
    _sharing(plan, relearn=False, ray=False)
    plan.set_defaults(go=_plan, overrides=True)

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
    finetune.add_argument("--kind", choices=["classification", "regression", "choice"],
                          help="regression reads numbers as labels, choice is multiple choice")  # fmt: skip
    finetune.add_argument(
        "--choices",
        nargs="+",
        metavar="COLUMN",
        help="with --kind choice: the column with the list of them, or several",
    )
    finetune.add_argument(
        "--layout", metavar="NAME", help="rows as a data set's own files hold them: race, story_cloze, snli or scitail"
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
    finetune.set_defaults(go=_finetune, overrides=True)

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
    glue.set_defaults(go=_glue, overrides=True)

    report = commands.add_parser("report", help="make the page of a run again, or compare several runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument(
        "--out", type=Path, help="file of the page (default RUN/report.html; of several: ./report.html)"
    )
    report.add_argument(
        "--times", action="store_true", help="with how long each method took, which differs from run to run"
    )
    report.set_defaults(go=_report, overrides=False)

    verify = commands.add_parser("verify", help="recompute what earlier domains read and compare the bits")
    verify.add_argument("run", type=Path, metavar="RUN")
    verify.set_defaults(go=_verify, overrides=False)

    route = commands.add_parser("route", help="how often the plug-in with the least LM loss is the right one")
    route.add_argument("run", type=Path, metavar="RUN")
    route.add_argument(
        "--top", type=int, default=2, help="plug-ins that are mixed, by softmax of minus the losses (default 2)"
    )
    route.set_defaults(go=_route, overrides=False)

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
    imports.set_defaults(go=_import, overrides=False)

    pretrain = commands.add_parser(
        "pretrain", allow_abbrev=False, help="train an AWD-LSTM language model from nothing, or resume its training",
        epilog="Any key of the recipe can be given: --epochs 10 --network.cell_size 500 --directions '[backward]'",
    )  # fmt: skip
    pretrain.add_argument("recipe", help="a YAML file, or the name of a shipped one (eunoe list pretrain)")
    pretrain.add_argument("--out", type=Path, help="folder to train in (default runs/NAME)")
    pretrain.add_argument("--scale", help="a named set of overrides from the recipe's `scales`")
    pretrain.set_defaults(go=_pretrain, overrides=True)

    lists = commands.add_parser("list", help="methods, models, transfers or recipes")
    lists.add_argument("what", metavar="{methods,models,transfers,recipes,pretrain}")
    lists.set_defaults(go=_list, overrides=False)
    return parser


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


def _demo(args: argparse.Namespace, rest: list[str]) -> int:
    args.recipe, args.scale = lookup(DEMOS, args.model, "demo model"), None
    return _run(args, rest)


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    from eunoe.recipe import load_recipe

    recipe = load_recipe(args.recipe, _overrides(rest), args.scale)
    out = args.out or Path("runs") / recipe.name

    from eunoe.engine import run  # torch and transformers: seconds

    report = run(recipe, out, args.words, jobs=_jobs(args.jobs, args.ray), ray=args.ray, relearn=args.relearn)
    if ranks.first():
        _summary([out])
        print(f"report: {report}")
    return 0


def _pretrain(args: argparse.Namespace, rest: list[str]) -> int:
    from eunoe.recipe.pretraining import load_pretraining

    recipe = load_pretraining(args.recipe, _overrides(rest), args.scale)
    out = args.out or Path("runs") / recipe.name

    from eunoe.pretrain import lines, pretrain  # torch and transformers: seconds

    for line in lines(recipe, pretrain(recipe, out)):
        beside = "" if line.published is None else f" (published: {line.published:g})"
        print(f"{line.direction} {line.score}: perplexity {line.perplexity:.2f}{beside}")
    if recipe.published_note is not None:
        print(f"published: {recipe.published_note}")
    print(f"models: {', '.join(str(out / direction / 'model') for direction in recipe.directions)}")
    return 0


def _new(args: argparse.Namespace, _rest: list[str]) -> int:
    from eunoe.draft import new_recipe

    file = shlex.quote(str(new_recipe(args.folder, args.out, args.model)))
    print(f"{file}: read its comments, then: eunoe plan {file}; eunoe run {file}")
    return 0


def _plan(args: argparse.Namespace, rest: list[str]) -> int:
    from eunoe.recipe import load_recipe

    recipe, jobs = load_recipe(args.recipe, _overrides(rest), args.scale), _jobs(args.jobs)
    began = time.monotonic()

    from eunoe.preview import preview, print_preview  # torch and transformers: seconds, which a run takes too

    print_preview(preview(recipe, jobs, time.monotonic() - began), sys.stdout.isatty())
    return 0


def _jobs(text: str | None, ray: str | None = None) -> int | Literal["auto"]:
    """``auto`` or a number of processes; what is always wished for (``EUNOE_JOBS``) does not hold where a cluster does the work."""
    if text is None:
        text = "auto" if ray is not None else os.environ.get("EUNOE_JOBS") or "auto"
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise EunoeError(
            f"--jobs is {text!r}; give a number of processes from 1 to 1024, or auto (one a core for models below 100M weights, else one)."
        )
    return int(text)


def _finetune(args: argparse.Namespace, rest: list[str]) -> int:
    from eunoe.compose import finetune_study, plot_lambda

    study = finetune_study(args, _overrides(rest))
    if args.plot_lambda:
        print(f"plot: {plot_lambda(study, args.out)}")
        return 0
    return _study(study, args)


def _glue(args: argparse.Namespace, rest: list[str]) -> int:
    from eunoe.data.submission import fill_submission, validate_submission

    if args.fill and not (args.submit or args.check):
        raise EunoeError("--fill completes a submission: give it with --submit, or with --check ZIP.")
    if args.check:
        if args.fill and (added := fill_submission(args.check)):
            print(f"{args.check}: {', '.join(added)} answered with a constant: their scores on the server mean nothing")
        problems = validate_submission(args.check)
        print(
            "\n".join(problems) or f"{args.check}: every file has the names, header, order and labels that GLUE reads."
        )
        return 2 if problems else 0
    from eunoe.compose import glue_study

    return _study(glue_study(args, _overrides(rest)), args)


def _study(study: Study, args: argparse.Namespace) -> int:
    from eunoe.engine import run

    report = run(
        study, args.out, args.words, jobs=_jobs(args.jobs, args.ray), ray=args.ray, fill=getattr(args, "fill", False)
    )
    _summary([args.out])
    print(f"report: {report}")
    return 0


def _report(args: argparse.Namespace, _rest: list[str]) -> int:
    from eunoe.report.page import write_report

    path = write_report(args.runs, args.out, times=args.times)
    _summary(args.runs)
    print(f"report: {path}")
    return 0


def _summary(runs: list[Path]) -> None:
    from rich.console import Console

    from eunoe.report.read import read_run
    from eunoe.report.samples import samples_text
    from eunoe.report.terminal import print_run

    for out in runs:
        if (out / "rows.jsonl").is_file() or (out / "cells").is_dir():
            run = read_run(out)
            print_run(run, Console(width=None if sys.stdout.isatty() else 100))
            if run.samples:
                print(f"\n{samples_text(run.samples)}")


def _verify(args: argparse.Namespace, _rest: list[str]) -> int:
    from eunoe.verify import verify

    findings = verify(args.run)
    width = max(len(f"{f.sequence} {f.domain}") for f in findings)
    for f in findings:
        mark = "BROKEN" if f.broken else "kept" if f.promised else "no promise"
        print(f"{f.sequence + ' ' + f.domain:<{width}}  {mark:<10}  {f.text}")
    broken = [f for f in findings if f.broken]
    promised = sum(f.promised for f in findings)
    if broken:
        print(f"eunoe: {len(broken)} of {promised} promises are broken.", file=sys.stderr)
        return 1
    if not promised:
        print("no method of this run promises zero forgetting: nothing to prove.")
        return 0
    print(f"all {promised} promises of zero forgetting hold, bit for bit.")
    return 0


def _route(args: argparse.Namespace, _rest: list[str]) -> int:
    from eunoe.route import route_run

    print(route_run(args.run, args.top))
    return 0


def _import(args: argparse.Namespace, _rest: list[str]) -> int:
    if args.what != "cpt":
        raise unknown(args.what, ("cpt",), "kind of checkpoint")

    from eunoe.plugins.task_mask import refuse_s_max
    from eunoe.recipe import ModelSettings, check_names

    refuse_s_max(args.s_max, "--s-max")
    check_names(args.domains, "domain")
    if args.file.is_dir():
        inside = sorted(map(str, (*args.file.glob("pytorch_model*.bin"), *args.file.glob("*.safetensors"))))
        give = " or ".join(inside) or "their pytorch_model.bin or .safetensors, of which none lies in it"
        raise EunoeError(f"{args.file} is a folder, and FILE is one file of weights. Give {give}.")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise EunoeError(f"{args.out} exists and is not empty. Choose another --out, or empty it.")

    source = Path(args.model)
    if source.is_dir() and args.out.resolve().is_relative_to(source.resolve()):
        raise EunoeError(
            f"--out {args.out} lies in the model's folder {source}, which is only read. Choose another --out."
        )

    from eunoe.models.load import load_lm, read_weights
    from eunoe.plugins.cpt_release import import_cpt
    from eunoe.plugins.files import save_plugins

    tensors = read_weights(args.file)
    model = load_lm(ModelSettings(name=args.model)).model
    imported = import_cpt(model, tensors, args.domains, args.s_max)
    save_plugins(model, args.out)
    print(f"{args.out}: plug-ins, placement {imported.placement}, sizes {imported.sizes['attention']} and {imported.sizes['feed_forward']}"
          f", domains {', '.join(args.domains)} ({len(args.domains)} of the file's {imported.rows})")  # fmt: skip
    if imported.unknown:
        print(f"not read, as the model has no such weight ({len(imported.unknown)}): {_listed(imported.unknown)}")
    if imported.differs:
        print(f"left, as the base model's stay ({len(imported.differs)} differ; the release trains and drops its LayerNorms and LM head): "
              f"{_listed(imported.differs)}")  # fmt: skip
    return 0


def _listed(names: Sequence[str], most: int = 100) -> str:
    """Names of a foreign file, fit for a terminal."""
    return ", ".join(visible(name) for name in names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _list(args: argparse.Namespace, _rest: list[str]) -> int:
    rows: list[tuple[str, ...]]
    if args.what in ("recipes", "pretrain"):
        from eunoe.recipe import read_yaml, shipped_recipes

        inside = "." if args.what == "recipes" else "pretrain"
        rows = [(n, str(read_yaml(p).get("about", ""))) for n, p in shipped_recipes(inside).items()]
    elif args.what == "methods":
        from eunoe.methods.facts import rows as facts

        rows = facts()
    elif args.what == "transfers":
        from eunoe.transfer import TRANSFERS

        rows = [(name, entry.summary) for name, entry in TRANSFERS.items()]
    elif args.what == "models":
        from eunoe.models.anatomy import FAMILIES
        from eunoe.models.load import MODELS

        rows = [(name, model.about) for name, model in MODELS.items()]
        rows.append(("NAME or FOLDER", f"any Hugging Face masked or causal LM of the families {', '.join(FAMILIES)}"))
    else:
        raise unknown(args.what, ("methods", "models", "transfers", "recipes", "pretrain"), "list")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _overrides(rest: list[str]) -> list[tuple[str, str]]:
    """``--a.b value`` and ``--a.b=value`` -> (key, value) pairs."""
    pairs: list[tuple[str, str]] = []
    words = iter(rest)
    for word in words:
        if not word.startswith("--") or word == "--":
            raise EunoeError(f"did not expect {word!r}; overrides look like --training.lr 5e-5.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                raise EunoeError(f"--{key} needs a value, as in --{key} 5e-5.")
            value = following
        pairs.append((key, value))
    return pairs


if __name__ == "__main__":
    sys.exit(main())
