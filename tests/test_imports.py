"""Who may import whom, as CONTRIBUTING.md states it."""

from __future__ import annotations

import ast
from pathlib import Path

import bnexp

ROOT = Path(bnexp.__file__).parent
# module or package -> what of bnexp it may import, besides itself, errors and metrics
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "metrics": set(),
    "seeding": set(),
    "plugins": set(),
    "sources": set(),
    "options": set(),
    "section": set(),
    "config": {"options", "plugins", "section"},
    "identity": {"config"},
    "records": {"config"},
    "ledger": {"identity"},
    "folders": {"ledger"},
    "store": {"ledger", "records"},
    "comparison": {"section"},
    "study": {"comparison", "identity", "section"},
    "choices": {"plugins"},
    "catalog": {"choices", "study"},
    "request": {"config", "study"},
    "compose": {"catalog", "choices", "comparison", "config", "plugins", "request", "section", "study"},
    "nn": {"plugins"},
    "data": {"plugins"},
    "probes": {"nn"},
    "engine": {"nn", "data", "probes", "plugins", "config", "identity", "records", "seeding", "store"},
    "analysis": {"comparison", "records", "store", "study"},
    "report": {"analysis", "catalog", "comparison", "folders", "ledger", "records", "sources", "store", "study"},
    "planned": {"config", "engine", "identity", "request", "store"},
    "deciding": {"analysis", "planned", "records", "request"},
    "frozen": {"analysis", "engine", "folders", "identity", "ledger", "planned", "request", "store", "study"},
    "progress": {"config", "planned", "records", "request"},
    "runner": {"config", "deciding", "engine", "frozen", "identity", "planned", "progress", "records", "request"},
    "plan": {"analysis", "engine", "frozen", "identity", "planned", "progress", "request"},
    "status": {"analysis", "catalog", "records", "sources", "store"},
    "bench": {"compose", "config", "data", "engine"},
    "cli": {"bench", "choices", "compose", "runner", "plan", "status", "report", "store"},
    "__main__": {"cli"},
}
WITH_HYDRA = {"compose/composing.py", "compose/grammar.py", "compose/jobs.py"}
WITHOUT_TORCH = (
    "catalog",
    "choices",
    "comparison",
    "compose",
    "config",
    "options",
    "plugins",
    "section",
    "identity",
    "ledger",
    "folders",
    "records",
    "store",
    "study",
    "sources",
    "request",
    "analysis",
    "report",
    "errors",
    "metrics",
)


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "bnexp" else {node.module}
            )
    return names


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_imports_go_one_way() -> None:
    for path in sources():
        part = part_of(path)
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("bnexp.")} - {"__version__"}
        extra = ours - {part, "errors", "metrics"} - ALLOWED[part]
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_only_three_modules_import_hydra_and_reading_never_needs_torch() -> None:
    for path in sources():
        roots = {name.split(".")[0] for name in imported(path)}
        part = part_of(path)
        assert (str(path.relative_to(ROOT)) in WITH_HYDRA) == bool(roots & {"hydra", "omegaconf"}), path
        assert part not in WITHOUT_TORCH or not roots & {"torch", "torchvision"}, path
