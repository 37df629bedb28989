"""verify: whether the files of a directory are whole, and fit each other."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.errors import UserError
from llmctl.flags import Shown, expand, model_path
from llmctl.spec.contents import Kind, kind_of, manifest_of, unknown
from llmctl.spec.manifest import MANIFEST, files_of, name_in
from llmctl.spec.safetensors import read_header
from llmctl.spec.whole import Problem, check_files, exit_code

PATHS = "Checkpoints, token directories, tokenizers, .safetensors files; - for a path on stdin."
Say = Callable[[str], None]
Read = Callable[[int], None]


@expand
def verify(
    paths: Annotated[list[Path], typer.Argument(help=PATHS, metavar="PATH...")],
    shown: Shown,
    values: Annotated[bool, "Read all weights as well, and look for infinities and NaNs."] = False,
) -> None:
    """Check that the files of directories are whole, and fit each other.

    Whole: the sizes and hashes in llmctl.json, where llmctl made it. Fit: tensors and config.json, special ids,
    tokenizer and vocabulary, tokens and the ends of documents. Ends with 1 where files are damaged, else with 4 where
    they do not fit each other; each problem is a line on stderr, and in the report.
    """
    from llmctl.console import Console

    console, errors = Console(shown), Console(replace(shown, quiet=False))
    given = [model_path(path) for path in paths]
    places = [one for path in given for one in _places(path)]
    checked, problems, warnings = [], [], []
    with console.progress(None, "bytes", "verify") as progress:
        done = 0

        def read(count: int) -> None:
            nonlocal done
            done += count
            progress.update(done)

        for place, covered in places:
            hashed, found = (True, []) if covered else _check_whole(place, warnings.append, read)
            found += _check_fit(place, values, warnings.append, read)
            about = {"path": str(place), "kind": kind_of(place), "hashes": hashed, "problems": len(found)}
            checked.append(about)
            problems += found
    for note in warnings:
        console.warn(note)
    for one in problems:
        errors.say(f"error: {one.path}: {one.problem}")
    report = {
        "ok": not problems,
        "checked": checked,
        "problems": [asdict(problem) for problem in problems],
        "warnings": warnings,
    }
    console.report(report, None if shown.json else _table(console, checked))
    raise typer.Exit(exit_code(problems))


def _places(path: Path) -> list[tuple[Path, bool]]:
    """The path, and the directories right in it that hold something, such as `best` of a training run.

    Returns:
        each, and whether the llmctl.json of the directory around it, which is in the list too, covers its files.

    Raises:
        UserError: neither it nor any of them holds anything that is known.
    """
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith(".")) if path.is_dir() else []
    sealed = (path / MANIFEST).is_file()
    found = [
        (entry, sealed and not (entry / MANIFEST).is_file())
        for entry in inside
        if entry.is_dir() and kind_of(entry) is not None
    ]
    if kind_of(path) is not None or sealed:
        return [(path, False), *found]
    if not found:
        raise unknown(path)
    return found


def _check_whole(place: Path, note: Say, read: Read) -> tuple[bool, list[Problem]]:
    """Whether there are hashes to compare, and what is missing or damaged by them."""
    if place.is_file():
        note(f"{place} is one file, so its hash was not checked.")
        return False, []
    try:
        manifest, files = manifest_of(place)
    except UserError as error:
        return False, [Problem.of(place / MANIFEST, error, "unreadable")]
    if manifest is None:
        note(f"{place} has no {MANIFEST}, so hashes were not checked.")
        return False, []
    if not files:
        return False, [Problem(str(place / MANIFEST), "lists no files.", "unreadable")]
    _note_unlisted(place, {file["name"] for file in files}, note)
    return True, list(check_files(place, files, read))


def _check_fit(place: Path, values: bool, note: Say, read: Read) -> list[Problem]:
    """What does not fit within one place."""
    if place.is_file():
        return _file(place, values, read)
    kind = kind_of(place)
    return [] if kind is None else CHECKS[kind](place, values, note, read)


def _note_unlisted(place: Path, names: set[str], note: Say) -> None:
    """Names the files that llmctl.json does not list; those of directories that have their own are not meant."""
    own = [path.parent for path in place.glob(f"*/{MANIFEST}")]
    for path in files_of(place):
        name = name_in(path, place)
        if name != MANIFEST and name not in names and not any(folder in path.parents for folder in own):
            note(f"{path} is not listed in {MANIFEST}.")


def _file(path: Path, values: bool, read: Read) -> list[Problem]:
    """A safetensors file by itself."""
    from llmctl.core.checkpoint.check import check_values

    try:
        tensors, _ = read_header(path)
    except UserError as error:
        return [Problem.of(path, error, "header")]
    return list(check_values(path.parent, tensors, read)) if values else []


def _checkpoint(place: Path, values: bool, note: Say, read: Read) -> list[Problem]:
    from llmctl.core.checkpoint.check import check_checkpoint

    return list(check_checkpoint(place, values, note, read))


def _adapter(place: Path, values: bool, note: Say, read: Read) -> list[Problem]:
    from llmctl.core.checkpoint.check import check_adapter

    return list(check_adapter(place, values, note, read))


def _tokens(place: Path, values: bool, note: Say, read: Read) -> list[Problem]:
    from llmctl.core.data.check import check_tokens

    return list(check_tokens(place, note, read))


def _tokenizer(place: Path, values: bool, note: Say, read: Read) -> list[Problem]:
    from llmctl.core.text.tokenizer import Tokenizer

    try:
        Tokenizer.open(place)
    except UserError as error:
        return [Problem.of(place, error, "vocabulary")]
    return []


CHECKS: dict[Kind, Callable[[Path, bool, Say, Read], list[Problem]]] = {
    "checkpoint": _checkpoint,
    "adapter": _adapter,
    "tensors": _checkpoint,
    "tokens": _tokens,
    "tokenizer": _tokenizer,
}


def _table(console: Any, checked: list[dict[str, Any]]) -> Any:
    rows = [
        (
            one["path"],
            one["kind"],
            "compared" if one["hashes"] else "none",
            "sound" if not one["problems"] else f"{one['problems']} problems",
        )
        for one in checked
    ]
    return console.table("", ("path", "holds", "hashes", "found"), rows)
