"""The command ``eunoe``. ``--help`` answers at once: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eunoe import ranks, stop
from eunoe.allocator import keep_freed_memory
from eunoe.arguments import COMMANDS, DEMOS, parser
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.lookup import lookup, unknown

if TYPE_CHECKING:
    from eunoe.recipe import Study


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 2 the user can correct it, 130 stopped with its place saved)."""
    words = list(sys.argv[1:] if argv is None else argv)
    # before torch is loaded: threads that spin while they wait make every step slow as soon as another process runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if argv is None:  # a process of our own
        keep_freed_memory()
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
    args, rest = parser().parse_known_args(words)
    if args.command is None:
        parser().print_help()
        return 0
    if rest and not args.overrides:
        raise EunoeError(f"eunoe {args.command} does not know {rest[0]!r}. See: eunoe {args.command} --help")
    if args.command not in ("demo", "run", "list"):
        ranks.check()
        ranks.refuse_several(f"eunoe {args.command}")
    args.words = shlex.join(["eunoe", *words])
    return _GO[args.command](args, rest)


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


_GO: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "demo": _demo, "new": _new, "plan": _plan, "run": _run, "finetune": _finetune, "glue": _glue, "report": _report,
    "verify": _verify, "route": _route, "import": _import, "pretrain": _pretrain, "list": _list,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
