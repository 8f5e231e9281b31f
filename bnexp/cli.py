"""The command line: a table of subcommands. Nothing heavy is imported until one is chosen."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from bnexp import __version__
from bnexp.errors import BnexpError, ConfigError

USAGE = """bnexp: the laboratory for batch normalization

  bnexp train [KEY=VALUE ...]              train one run; with no argument, a CNN with batch norm on embedded digits
  bnexp train -m lr=0.01,0.1 norm=none,batch 'seed=range(5)'
                                           a grid of runs; finished ones are never repeated, interrupted ones resume
  bnexp train -m study=placement           a declared study; several: study=placement,lr-range, every one: study=all
  bnexp plan ...same arguments as train    what would run, and for how long; trains nothing
  bnexp status [STUDY] [--json] [--watch]  the runs on disk and how they fare
  bnexp report [--out DIR]                 the audit: one page over all studies, a row and a section for each claim
  bnexp report STUDY ... | --runs          figures, tables and one HTML page of a study, or of every run
  bnexp studies [--json]                   the declared studies
  bnexp bench [SIZE ...]                   how fast this machine trains, beside the loop that tutorials teach

  bnexp train --help                       every choice, with a line each, and the keys of a run
  eval "$(bnexp -sc install=bash)"         completes choices and keys at a TAB
  bnexp --version

status and report take --results DIR, train and plan take results=DIR; both default to results/ or $BNEXP_RESULTS.
A study keeps the declaration that it was started with; train --fork starts a changed one beside it.
Data sets lie in data.root, by default data/ or $BNEXP_DATA.
Exit status: 0 every run finished (a diverged run has finished), 1 a run crashed, 2 a mistake in the call,
130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"bnexp {__version__}")
        return 0
    try:
        if arguments[0] in ("-sc", "--shell-completion"):
            return _complete(arguments[1:])
        if arguments[0] not in COMMANDS:
            raise ConfigError("command", got=arguments[0], choices=COMMANDS, hint="see bnexp --help")
        return COMMANDS[arguments[0]](arguments[1:])
    except BnexpError as error:
        print(f"bnexp: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bnexp: interrupted; what was finished is kept, and the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `bnexp status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _complete(argv: list[str]) -> int:
    """What the shell asks for at a TAB: the subcommands are ours, what stands behind train and plan is composed."""
    argument = argv[0] if argv else "install=bash"
    known = [f"{task}={shell}" for task in ("install", "query", "uninstall") for shell in ("bash", "fish", "zsh")]
    if argument not in known:
        raise ConfigError("--shell-completion", got=argument, choices=known)
    words = os.environ.get("COMP_LINE", "").split(" ")
    if argument.startswith("query=") and len(words) < 3:
        print(("\n" if argument == "query=fish" else " ").join(COMMANDS))
        return 0
    if argument.startswith("query=") and words[1] not in ("train", "plan"):
        return 0
    from bnexp import compose

    compose.complete(argument)
    return 0


def _train(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        from bnexp.choices import help_text, split_config_dir

        print(help_text(split_config_dir(argv)[0]), end="")
        return 0
    from bnexp import compose

    if compose.wants_hydra(argv):
        from bnexp.runner import train_one

        compose.run_under_hydra(argv, train_one)
        return 0
    request = compose.request_from_argv(argv)
    from bnexp.runner import train

    return train(request)


def _plan(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        return _train(argv)
    from bnexp import compose

    request = compose.request_from_argv([word for word in argv if word != "--json"])
    from bnexp.plan import print_plan

    print_plan(request, as_json="--json" in argv)
    return 0


def _status(argv: list[str]) -> int:
    from bnexp.status import main

    return main(argv)


def _report(argv: list[str]) -> int:
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(
        "bnexp report", description="Figures, tables and one HTML page, from the records alone."
    )
    everything = "without any, the audit over all of them, or every run where no study was started"
    parser.add_argument("study", nargs="*", help=f"studies; {everything}")
    parser.add_argument("--runs", action="store_true", help="every run in the results folder, whatever its study")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("BNEXP_RESULTS", "results")))
    parser.add_argument("--out", type=Path, help="folder of the report, by default RESULTS/reports/STUDY")
    options = parser.parse_args(argv)
    if options.out is not None and len(options.study) > 1:
        raise ConfigError("--out", got=str(options.out), hint="takes one study, so that no report overwrites another")
    if options.runs and options.study:
        raise ConfigError("--runs", got=" ".join(options.study), hint="is a report of every run: leave out the study")
    from bnexp.report import make_report
    from bnexp.store import Store

    store = Store(options.results)
    if not options.study and not options.runs and store.study_names():
        from bnexp.report.audit import make_audit

        results = [make_audit(store, out=options.out)]
    else:
        results = [make_report(store, study, out=options.out) for study in options.study or [None]]
    for result in results:
        print(result.table)
        print(f"\nreport: {result.html}")
    return 0


def _studies(argv: list[str]) -> int:
    from bnexp.status import print_studies

    return print_studies(argv)


def _bench(argv: list[str]) -> int:
    from bnexp.bench import main

    return main(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "plan": _plan,
    "status": _status,
    "report": _report,
    "studies": _studies,
    "bench": _bench,
}


if __name__ == "__main__":
    sys.exit(main())
