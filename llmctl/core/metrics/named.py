"""Named metrics: where the module of `evaluate` is that a name or a path means; loads nothing."""

from pathlib import Path

from llmctl.errors import UserError

MODULES = Path(__file__).parent / "modules"
HUB = "hf:"


def ours() -> list[str]:
    """The names of our own modules."""
    return sorted(path.stem for path in MODULES.glob("*.py") if path.stem not in ("__init__", "described"))


def module_of(name: str) -> Path | None:
    """The file of a metric: one of ours, a path, or in a directory the file named as it; None: "hf:NAME", the hub's.

    Raises:
        UserError: there is none.
    """
    if name.startswith(HUB):
        return None
    path = MODULES / f"{name}.py" if name in ours() else Path(name)
    path = path / f"{path.resolve().name}.py" if path.is_dir() else path
    if not path.is_file():
        hint = f"Ours: {', '.join(ours())}; a path; or {HUB}{Path(name).stem} from the hub."
        raise UserError(f"{path} is no metric's module: there is no such file.", hint)
    return path
