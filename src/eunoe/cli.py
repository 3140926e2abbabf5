"""The command ``eunoe``. ``--help`` answers at once: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from eunoe.errors import EunoeError
from eunoe.lookup import unknown

COMMANDS = ("demo", "run", "report", "verify", "list")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 2 the user can mend it, 130 stopped with its place saved)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise unknown(words[0], COMMANDS, "command")
        args, rest = _parser().parse_known_args(words)
        if args.command is None:
            _parser().print_help()
            return 0
        if rest and not args.overrides:
            raise EunoeError(f"eunoe {args.command} does not know {rest[0]!r}. See: eunoe {args.command} --help")
        args.words = shlex.join(["eunoe", *words])
        code: int = args.go(args, rest)
        return code
    except EunoeError as error:
        print(f"eunoe: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("eunoe: stopped. Run the same command to go on from the last checkpoint.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        print(f"eunoe: {error.filename or 'a file'} could not be written: {error.strerror}. Nothing finished is lost; free "
              "space and run the same command again.", file=sys.stderr)  # fmt: skip
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eunoe",
        description="Teach a pretrained language model new domains without it forgetting, and show what it forgot.",
    )
    parser.add_argument("--version", action="version", version=f"eunoe {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="four domains, learnt naively and with CPT, in a few minutes and without a network",
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default runs/demo)")
    demo.set_defaults(go=_demo, overrides=True)

    run = commands.add_parser(
        "run", allow_abbrev=False, help="carry out a recipe, or go on with it",
        epilog="Any key of the recipe can be given: --training.lr 5e-5 --domains.0.corpus.tokens 100000 "
               "--domains.'*'.task.test_rows null --methods '[ncl, cpt]'",
    )  # fmt: skip
    run.add_argument("recipe", help="a YAML file, or the name of a shipped recipe (eunoe list recipes)")
    run.add_argument("--out", type=Path, help="run folder (default runs/NAME)")
    run.add_argument("--scale", help="a named set of overrides from the recipe's `scales`")
    run.set_defaults(go=_run, overrides=True)

    report = commands.add_parser("report", help="make the page of a run again, or compare several runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument(
        "--out", type=Path, help="file of the page (default RUN/report.html; of several: ./report.html)"
    )
    report.set_defaults(go=_report, overrides=False)

    verify = commands.add_parser("verify", help="recompute what earlier domains read and compare the bits")
    verify.add_argument("run", type=Path, metavar="RUN")
    verify.set_defaults(go=_verify, overrides=False)

    lists = commands.add_parser("list", help="methods, models, transfers or recipes")
    lists.add_argument("what", metavar="{methods,models,transfers,recipes}")
    lists.set_defaults(go=_list, overrides=False)
    return parser


def _version() -> str:
    from eunoe import __version__

    return __version__


def _demo(args: argparse.Namespace, rest: list[str]) -> int:
    args.recipe, args.scale = "demo", None
    return _run(args, rest)


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    from eunoe.recipe import load_recipe

    recipe = load_recipe(args.recipe, _overrides(rest), args.scale)
    out = args.out or Path("runs") / recipe.name

    from eunoe.run import run  # torch and transformers: seconds

    report = run(recipe, out, args.words)
    _summary([out])
    print(f"report: {report}")
    return 0


def _report(args: argparse.Namespace, _rest: list[str]) -> int:
    from eunoe.report.page import write_report

    path = write_report(args.runs, args.out)
    _summary(args.runs)
    print(f"report: {path}")
    return 0


def _summary(runs: list[Path]) -> None:
    from rich.console import Console

    from eunoe.report.schema import read_rows
    from eunoe.report.tables import print_summary

    for out in runs:
        rows = read_rows(out / "rows.jsonl")
        if rows:
            print_summary(rows, Console(width=None if sys.stdout.isatty() else 100))


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


def _list(args: argparse.Namespace, _rest: list[str]) -> int:
    rows: list[tuple[str, str]]
    if args.what == "recipes":
        from eunoe.recipe import parse_yaml, shipped_recipes

        rows = [
            (n, str(parse_yaml(p.read_text(encoding="utf-8"), n).get("about", "")))
            for n, p in shipped_recipes().items()
        ]
    elif args.what == "methods":
        from eunoe.methods import METHODS

        rows = [(name, entry.summary) for name, entry in METHODS.items()]
    elif args.what == "transfers":
        from eunoe.transfer import TRANSFERS

        rows = [(name, entry.summary) for name, entry in TRANSFERS.items()]
    elif args.what == "models":
        from eunoe.models.anatomy import FAMILIES
        from eunoe.models.load import MODELS

        rows = [(name, model.about) for name, model in MODELS.items()]
        rows.append(("NAME or FOLDER", f"any Hugging Face masked or causal LM of the families {', '.join(FAMILIES)}"))
    else:
        raise unknown(args.what, ("methods", "models", "transfers", "recipes"), "list")
    width = max(len(name) for name, _ in rows)
    for name, about in rows:
        print(f"{name:<{width}}  {about}")
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
            found = next(words, None)
            if found is None:
                raise EunoeError(f"--{key} needs a value, as in --{key} 5e-5.")
            value = found
        pairs.append((key, value))
    return pairs


if __name__ == "__main__":
    sys.exit(main())
