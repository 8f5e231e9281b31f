"""What a shell completes at a TAB: choices by us, keys by Hydra."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bnexp.catalog import EVERY_STUDY, load_study
from bnexp.choices import choice_names, choices, groups, split_config_dir
from bnexp.compose.choosing import BETWEEN_NAMES, search_path, write_plugin_choices
from bnexp.compose.jobs import ask_hydra_to_complete
from bnexp.compose.studies import OF_STUDIES, STOPS
from bnexp.study import TIERS


def complete(argument: str) -> None:
    """Answer a shell that asks at a TAB, `query=bash`, or print the script that makes it ask, `install=bash`."""
    task, _, shell = argument.partition("=")
    if task != "query":
        ask_hydra_to_complete(argument)
        return
    words = os.environ.get("COMP_LINE", "").split(" ")[2:]
    with suppress(Exception):  # whatever is wrong with a half-typed line, a TAB says nothing
        config_dir, before = split_config_dir(words[:-1])
        given = [stripped for word in before if "=" in (stripped := word.strip("'\"")) and not stripped.startswith("-")]
        word = words[-1].lstrip("'\"")
        found = _complete_choice(word, given, config_dir)
        if found is not None:
            print(("\n" if shell == "fish" else " ").join(found))
        elif not word.startswith("-"):
            keys = [f"{key}=" for key in OF_STUDIES if key != "study" and f"{key}=".startswith(word)]
            if keys:  # Hydra knows the folder study/, and not what is said of a study
                print(*keys, sep="\n")
            _complete_key(argument, word, _last_choices(given, config_dir), config_dir)


def _complete_key(argument: str, word: str, chosen: Sequence[str], config_dir: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="bnexp-") as folder:
        write_plugin_choices(Path(folder), chosen)
        os.environ["COMP_LINE"] = " ".join(["bnexp", *chosen, search_path(config_dir, Path(folder)), word])
        ask_hydra_to_complete(argument)


def _complete_choice(word: str, given: Sequence[str], config_dir: Path | None) -> list[str] | None:
    """`GROUP=PARTIAL`, also within a list or a grid, with every choice that fits; None for any other word."""
    group, is_value, value = word.partition("=")
    if not is_value or group not in (*groups(config_dir), *OF_STUDIES):
        return None
    cut = max(value.rfind(mark) for mark in "[,(") + 1
    named = dict(o.partition("=")[::2] for o in given)
    if group == "stop":
        names = list(STOPS)
    elif group != "tier":
        names = choice_names(group, config_dir) + ([EVERY_STUDY] if group == "study" and not cut else [])
    elif named.get("study", EVERY_STUDY) != EVERY_STUDY:
        found = [load_study(choices("study", config_dir)[name]).tiers for name in named["study"].split(",")]
        names = [tier for tier in TIERS if all(tier in tiers for tiers in found)]
    else:
        names = list(TIERS)
    taken = BETWEEN_NAMES.split(value[:cut])
    return [f"{group}={value[:cut]}{name}" for name in names if name.startswith(value[cut:]) and name not in taken]


def _last_choices(given: Sequence[str], config_dir: Path | None) -> list[str]:
    """What decides which keys there are: the choice of each group, of several in a grid the last."""
    known = groups(config_dir)
    pairs = [o.partition("=")[::2] for o in given]
    pairs = [(key, value) for key, value in pairs if key in known and "(" not in value]
    return [f"{key}={value if value.startswith('[') else value.rpartition(',')[2]}" for key, value in pairs]
