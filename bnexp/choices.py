"""The YAML files that can be chosen from, ours and the user's, and the one line that each says of itself."""

from __future__ import annotations

from pathlib import Path

from bnexp.errors import ConfigError
from bnexp.plugins import GROUPS as PLUGIN_AXES
from bnexp.plugins import plugin_names

HELP = """\
bnexp train [-m] [KEY=VALUE ...]: train one network, or a grid of them (-m), with or without a norm layer.

  bnexp train norm=group lr=0.1                          one run
  bnexp train -m norm=none,batch lr=0.01,0.1 seed=range(5)   a grid
  bnexp train -m study=placement tier=small              a declared study
  bnexp train probes=[gradients,shift] probes.shift.every=50

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
    """The config groups, studies left out: they are no part of a run."""
    roots = [config_root(), *([] if config_dir is None else [config_dir])]
    return {path.name for root in roots for path in root.iterdir() if path.is_dir()} - {"study"}


def choices(group: str, config_dir: Path | None) -> dict[str, Path]:
    """Choice -> its YAML file; the project's own come first, as in Hydra's search path."""
    roots = [*([] if config_dir is None else [config_dir]), config_root()]
    found = {path.stem: path for root in roots for path in sorted((root / group).glob("*.yaml"))}
    return dict(sorted(found.items()))


def help_text(config_dir: Path | None = None) -> str:
    """What `bnexp train --help` prints: every choice with a line of its own."""
    lines = []
    for group in ("data", "model", "norm", "optim", "schedule", "probes", "study", "exec"):
        lines.append(f"  {group}")
        lines += [f"    {name:16} {headline(path)}" for name, path in choices(group, config_dir).items()]
        for name in plugin_names(group) if group in PLUGIN_AXES else ():
            lines.append(f"    {name:16} from an installed package")
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
