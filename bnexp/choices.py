"""The YAML files that can be chosen from, ours and the user's, and the one line that each says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnexp.errors import ConfigError
from bnexp.plugins import GROUPS as PLUGIN_AXES
from bnexp.plugins import plugin_headline, plugin_names

HELP = """\
bnexp train [-m] [KEY=VALUE ...]: train one network, or a grid of them (-m), with or without a norm layer.

  bnexp train norm=group lr=0.1                                  one run
  bnexp train -m norm=none,batch lr=0.01,0.1 'seed=range(5)'     a grid
  bnexp train -m data.split=per_seed 'seed=range(5)'             each seed draws train, validation and test anew
  bnexp train -m study=placement tier=small                      a declared study
  bnexp train 'probes=[gradients,shift]' probes.shift.every=50   what to measure beside the training

Choices, as GROUP=CHOICE:
{choices}
Keys, as KEY=VALUE, and their defaults:
{keys}
GROUP.KEY=VALUE sets a key inside a group, such as norm.placement=after; --cfg job shows all of them for the choices
made. --config-dir DIR adds YAML files of your own. Tab completion: eval "$(bnexp -sc install=bash)"
"""


def config_root() -> Path:
    """The folder of the project's own YAML files: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise ConfigError("configs", got=str(package), hint="the installed package lacks its YAML files: install it again")


def groups(config_dir: Path | None) -> set[str]:
    """The config groups, studies left out: they are no part of a run.

    A folder of the user's without YAML files is none: results/ may lie beside study/.
    """
    roots = [config_root(), *([] if config_dir is None else [config_dir])]
    return {path.parent.name for root in roots for path in root.glob("*/*.yaml")} - {"study"}


def split_config_dir(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder of `--config-dir DIR`, where it is given, and the other words.

    Raises:
        ConfigError: it is no folder, or holds a file of the name of one of ours, which Hydra would never look at.
    """
    folder, others = None, []
    rest = iter(argv)
    for word in rest:
        if word not in ("-cd", "--config-dir") and not word.startswith("--config-dir="):
            others.append(word)
            continue
        value = word.partition("=")[2] or next(rest, None)
        folder = None if value is None else Path(value).absolute()
        if folder is None or not folder.is_dir():
            raise ConfigError("--config-dir", got=value, hint="not a folder")
    root = config_root()
    for path in sorted(root.rglob("*.yaml")) if folder is not None and folder.resolve() != root else ():
        own = path.relative_to(root)
        if folder is not None and (folder / own).exists():
            hint = f"holds {own}, and bnexp has a file of that name, which would be used instead: rename yours"
            raise ConfigError("--config-dir", got=str(folder), hint=hint)
    return folder, others


def choices(group: str, config_dir: Path | None) -> dict[str, Path]:
    """Choice -> its YAML file; `split_config_dir` has seen to it that no file of the user's is named as one of ours."""
    roots = [*([] if config_dir is None else [config_dir]), config_root()]
    found = {path.stem: path for root in roots for path in sorted((root / group).glob("*.yaml"))}
    return dict(sorted(found.items()))


def choice_names(group: str, config_dir: Path | None) -> list[str]:
    """Every choice once: ours, the user's, and those that installed packages add."""
    return list(dict.fromkeys([*choices(group, config_dir), *(plugin_names(group) if group in PLUGIN_AXES else ())]))


def is_ours(group: str, name: str) -> bool:
    """Whether a choice is one of the project's own files."""
    return (config_root() / group / f"{name}.yaml").is_file()


def help_text(config_dir: Path | None = None) -> str:
    """What `bnexp train --help` prints: every choice with a line of its own."""
    lines = []
    for group in ("data", "model", "norm", "optim", "schedule", "probes", "study", "exec"):
        lines.append(f"  {group}")
        found = choices(group, config_dir)
        for name in choice_names(group, config_dir):
            line = headline(found[name]) if name in found else plugin_headline(group, name)
            lines.append(f"    {name:16} {line}".rstrip())
    return HELP.format(choices="\n".join(lines) + "\n", keys="\n".join(_root_keys()) + "\n")


def headline(path: Path) -> str:
    """The comment that a YAML file opens with."""
    first = path.read_text().partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _root_keys() -> list[str]:
    """The lines of train.yaml that set a key of the root."""
    text = (config_root() / "train.yaml").read_text().partition("  - _self_")[2].partition("\nhydra:")[0]
    lines = [line for line in text.splitlines() if ": " in line and not line.startswith((" ", "#"))]
    return [f"  {line}" for line in lines]
