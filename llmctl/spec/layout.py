"""Output: a directory that is whole or absent, with an llmctl.json that says what made it and from what."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from llmctl.errors import Exit, UserError
from llmctl.spec.files import jsonable, lock, plain_errors, read_json, remove, sha256_of, sync, write_file, write_json
from llmctl.spec.manifest import (
    MANIFEST,
    Input,
    damaged,
    files_of,
    inputs_in,
    name_in,
    parent_of,
    read_manifest,
    recorded,
    versions,
)

__all__ = ["MANIFEST", "Input", "Output", "read_json", "read_manifest", "write_file", "write_json"]

PLAN = ".plan.json"  # in a resumable OUT.partial: what is being made there
# Options that change how a command runs or what it says, never what it makes.
NEUTRAL = frozenset(
    ["out", "force", "dry_run", "json", "quiet", "color", "threads", "save_every", "check", "fail_under"]
)


class Invocation(Protocol):
    """What makes an output; `llmctl.flags.Invocation` is one."""

    @property
    def command(self) -> str: ...
    @property
    def argv(self) -> list[str]: ...
    @property
    def options(self) -> dict[str, Any]: ...


class Output:
    """A directory that a command makes: built as OUT.partial, renamed when it is whole.

        output = Output.plan(written.out, invocation(), [texts], written.force)
        if not (output.up_to_date or written.dry_run):
            with output as partial:
                ...

    Names in OUT.partial that begin with a dot are scratch (the state of a training, say): they help to
    resume, and are gone from the finished directory.

    Attributes:
        out: the directory to make.
        up_to_date: it is there, made by the same command, options and inputs: nothing to do.
        resumed: OUT.partial holds what an interrupted run of the same plan had made.
        resumable: OUT.partial stays when the command fails or is stopped, if there is scratch in it.
        metrics: summary numbers for llmctl.json; those of the old one when up to date.
        lineage: what llmctl.json says of its parents; None: read from the inputs' own llmctl.json.
        device: where it was computed, for llmctl.json; None: as --device says.
        seconds: wall time of the command, known when it is done; that of the old one when up to date.
    """

    def __init__(self, out: Path, invocation: Invocation, inputs: Sequence[Path | str], force: bool, resumable: bool):
        self.out = out
        self.partial = out.with_name(out.name + ".partial") if out.name else out
        self.invocation = invocation
        self.force = force
        self.resumable = resumable
        self.up_to_date = False
        self.resumed = False
        self.metrics: dict[str, Any] = {}
        self.lineage: list[dict[str, Any]] | None = None
        self.device: str | None = None
        self.seconds = 0.0
        self._started = time.monotonic()
        self._paths = list(inputs)
        self._inputs: list[Input] | None = None

    @classmethod
    def plan(
        cls,
        out: Path,
        invocation: Invocation,
        inputs: Sequence[Path | str],
        force: bool = False,
        resumable: bool = False,
        need: int = 0,
    ) -> "Output":
        """Checks that `out` can be made, and whether it need be; writes nothing.

        Args:
            inputs: every file and directory that the result depends on; "-" where it is stdin.
            force: replace what an earlier run made at `out`.
            resumable: keep OUT.partial when the command stops, and go on from it.
            need: bytes that the result will take, where that is known.

        Raises:
            UserError: an input is missing; `out` exists and is something else, cannot be made there, does not fit
                on the disk, or is being made by another process; OUT.partial is of an interrupted run of another plan.
        """
        self = cls(Path(out), invocation, inputs, force, resumable)
        for path in self._paths:
            if str(path) != "-" and not str(path).startswith("hf:") and not Path(path).exists():
                raise UserError(f"{path} does not exist.", "Check the path.")
        _check_place(self.out, need - (_size(self.partial) if need and resumable else 0))
        if self.partial.is_dir():
            self._look_at_partial()
        if _occupied(self.out) and not self.up_to_date:
            self._look_at_old()
        return self

    @property
    def inputs(self) -> list[Input]:
        """The inputs with their digests; they are read when this is first asked for."""
        if self._inputs is None:
            known = [old for place in (self.out / MANIFEST, self.partial / PLAN) for old in inputs_in(place)]
            self._inputs = [Input.of(path, known) for path in self._paths]
        return self._inputs

    def __enter__(self) -> Path:
        self._making = self._make()
        return self._making.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._making.__exit__(*error)

    @contextmanager
    def _make(self) -> Iterator[Path]:
        plan = self._plan()
        with plain_errors(self.out), _locked(self.partial, self.out):
            if _occupied(self.out) and not self.force:
                raise UserError(f"{self.out} was made by another process in the meantime.", "Run this again.")
            if not self.resumed:
                for entry in self.partial.iterdir():
                    remove(entry)
            if self.resumable:
                write_json(self.partial / PLAN, plan)
            try:
                yield self.partial
                self.seconds = self.seconds or round(time.monotonic() - self._started, 3)
                self._seal()
                self._place()
            except BaseException:
                if self.partial.is_dir() and not (self.resumable and self._has_scratch()):
                    remove(self.partial)
                raise

    def _has_scratch(self) -> bool:
        """Whether there is anything to resume from."""
        scratch = [path for path in self.partial.glob(".*") if path.name != PLAN]
        return any(path.is_file() or any(path.iterdir()) for path in scratch)

    def _seal(self) -> None:
        """Everything onto the disk, then llmctl.json, then the scratch away."""
        files = [path for path in files_of(self.partial) if path.name != MANIFEST]
        for path in files:
            sync(path)
        listed = [
            {"name": name_in(path, self.partial), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in files
        ]
        options = self.invocation.options
        manifest = {
            "schema": "llmctl/1",
            "tool": versions(),
            **self._plan(),
            "argv": list(self.invocation.argv),
            "seed": options.get("seed"),
            "parents": [parent_of(path) for path in self._paths] if self.lineage is None else self.lineage,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "device": self.device or options.get("device"),
            "files": listed,
        }
        manifest["parents"] = [parent for parent in manifest["parents"] if parent]
        for folder in {path.parent for path in files}:
            sync(folder)
        write_json(self.partial / MANIFEST, manifest)
        for entry in [entry for entry in self.partial.iterdir() if entry.name.startswith(".")]:
            remove(entry)

    def _place(self) -> None:
        """Renames OUT.partial; what it replaces is renamed aside first, and comes back when that fails."""
        aside = None
        if _occupied(self.out) or self.out.is_symlink():
            aside = next(
                path
                for path in (self.out.with_name(f"{self.out.name}.old{n or ''}") for n in range(10**6))
                if not os.path.lexists(path)
            )
            os.rename(self.out, aside)
        try:
            os.rename(self.partial, self.out)
        except BaseException:
            if aside and not os.path.lexists(self.out):
                os.rename(aside, self.out)
            raise
        sync(self.out.parent)
        if aside:
            with suppress(OSError):  # the new one is in place, which is what was asked for
                remove(aside)

    def _plan(self) -> dict[str, Any]:
        return {
            "command": self.invocation.command,
            "options": dict(self.invocation.options),
            "inputs": [asdict(given) for given in self.inputs],
        }

    def _differences(self, old: dict[str, Any]) -> list[str]:
        """What an earlier plan has otherwise than this one, in words; empty: they make the same."""
        if old.get("command") != self.invocation.command:
            return [f"it is of llmctl {old.get('command')}"]
        before, now = recorded(old), self.inputs
        different = []
        if [given.sha256 for given in before] != [given.sha256 for given in now] or None in [g.sha256 for g in now]:
            paths = [g.path for g in now if g.sha256 is None or g.sha256 not in [b.sha256 for b in before]]
            different.append(f"other input{'s' * (len(paths) != 1)} ({', '.join(paths) or 'of another number'})")
        then = _significant(old.get("options") or {}, before)
        here = _significant(self.invocation.options, now)
        for name in sorted(then.keys() | here.keys()):
            if then.get(name) != here.get(name):
                flag = f"--{name.replace('_', '-')}"
                different.append(f"{flag} {_shown(then, name)} there, {_shown(here, name)} here")
        return different

    def _look_at_old(self) -> None:
        """OUT is there: is it what would be made, or may it be replaced?"""
        if not (self.out / MANIFEST).is_file():
            hint = f"It has no {MANIFEST}, so --force does not replace it: remove it, or write elsewhere."
            raise UserError(f"{self.out} exists, and llmctl did not make it.", hint)
        if self.force:
            return
        old = read_manifest(self.out) or {}
        different = self._differences(old)
        if not different:
            different = [f"{name} is missing or cut short" for name in damaged(self.out, old)]
        if different:
            raise UserError(
                f"{self.out} exists, but not as asked for: {_some(different)}.",
                "Use --force to replace it, or write elsewhere with -o.",
            )
        self.up_to_date = True
        self.metrics, self.seconds = old.get("metrics") or {}, old.get("seconds") or 0.0

    def _look_at_partial(self) -> None:
        """OUT.partial is there: another process at work, an interrupted run, or one that lacked but the rename."""
        with _locked(self.partial, self.out):
            old = read_manifest(self.partial)
            if old and not self._differences(old) and not damaged(self.partial, old):
                if not _occupied(self.out) or self.force:
                    self.up_to_date = True
                    self.metrics, self.seconds = old.get("metrics") or {}, old.get("seconds") or 0.0
                    if not self.invocation.options.get("dry_run"):
                        self._place()
                return
            if not self.resumable or not (self.partial / PLAN).is_file():
                return
            different = self._differences(read_json(self.partial / PLAN, "plan of an interrupted run"))
            self.resumed = not different
            if different and not self.force:
                raise UserError(
                    f"{self.partial} holds an interrupted run, but not the one asked for: {_some(different)}.",
                    f"Go on with its options, or use --force to begin anew, or rm -r {self.partial}",
                )


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    handle = lock(partial)
    if handle is None:
        hint = "Wait for it to end, or write elsewhere with -o."
        raise UserError(f"Another process is making {out}.", hint)
    try:
        yield
    finally:
        os.close(handle)


def _check_place(out: Path, need: int) -> None:
    if out.name in ("", "..") or str(out) == "-" or (out.exists() and out.samefile(Path.cwd())):
        raise UserError(f"-o is {str(out)!r}; wanted the name of a directory to make.", code=Exit.USAGE)
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out} exists and is not a directory.", "Remove it, or write elsewhere with -o.")
    parent = out.parent
    if not parent.is_dir():
        problem = "is not a directory" if parent.exists() else "does not exist"
        raise UserError(f"{out} cannot be made: {parent} {problem}.", f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{out} cannot be made: no permission to write in {parent}.", "Write elsewhere with -o.")
    free = shutil.disk_usage(parent).free
    if need > free:
        problem = f"{out} will take {need / 2**20:,.0f} MiB, but {parent} has {free / 2**20:,.0f} MiB free."
        raise UserError(problem, "Free some space, or write elsewhere with -o.", Exit.SPACE)


def _size(directory: Path) -> int:
    """Bytes that what an interrupted run left takes already."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):  # another process may be at work in it; that is looked at next
            total += path.lstat().st_size
    return total


def _occupied(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def _significant(options: dict[str, Any], inputs: list[Input]) -> dict[str, Any]:
    """The options that change the result; a path of an input counts only by its place, as the digests are compared."""
    places = {given.path: f"input {number}" for number, given in enumerate(inputs, 1) if given.sha256}

    def stable(value: Any) -> Any:
        if isinstance(value, list):
            return [stable(item) for item in value]
        return places.get(str(Path(value)), value) if isinstance(value, str) and value else value

    return {name: stable(jsonable(value)) for name, value in options.items() if name not in NEUTRAL}


def _shown(options: dict[str, Any], name: str) -> str:
    value = options.get(name)
    return "unset" if value is None else str(value)


def _some(items: list[str]) -> str:
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
