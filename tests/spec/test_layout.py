"""Output directories: whole or absent, up to date, resumed, replaced; and what their llmctl.json says."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.layout import Input, Output, read_manifest, write_json


@dataclass
class Call:
    """A command line, as flags.invocation() gives it."""

    command: str = "bake"
    argv: list[str] = field(default_factory=lambda: ["bake", "a.txt"])
    options: dict = field(default_factory=dict)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty directory with the input a.txt."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("clay")
    return tmp_path


def make(out="out", inputs=("a.txt",), files=(("pot.bin", b"pot"),), plan=None, **options):
    """Makes `out` as a command would; gives its Output."""
    output = Output.plan(Path(out), Call(options={"heat": 900, **options}), list(inputs), **(plan or {}))
    if not output.up_to_date:
        with output as partial:
            for name, data in files:
                (partial / name).parent.mkdir(exist_ok=True)
                (partial / name).write_bytes(data)
            output.metrics = {"pots": 1}
    return output


def test_a_finished_directory_says_what_made_it():
    make(files=[("pot.bin", b"pot"), ("sub/lid.bin", b"lid")], seed=7)
    manifest = json.loads(Path("out/llmctl.json").read_text())
    assert manifest["schema"] == "llmctl/1" and manifest["command"] == "bake" and manifest["argv"] == ["bake", "a.txt"]
    assert manifest["options"] == {"heat": 900, "seed": 7} and manifest["seed"] == 7
    assert manifest["metrics"] == {"pots": 1} and manifest["seconds"] >= 0
    assert set(manifest["tool"]) >= {"llmctl", "python"}
    assert manifest["inputs"][0] | {"mtime_ns": 0} == {
        "path": "a.txt",
        "bytes": 4,
        "sha256": sha("clay"),
        "mtime_ns": 0,
    }
    assert manifest["files"] == [
        {"name": "pot.bin", "bytes": 3, "sha256": sha("pot")},
        {"name": "sub/lid.bin", "bytes": 3, "sha256": sha("lid")},
    ]
    assert sorted(os.listdir()) == ["a.txt", "out"]


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_same_command_finds_it_up_to_date_and_leaves_it_untouched():
    make()
    before = os.stat("out/pot.bin").st_mtime_ns
    again = make(files=[("pot.bin", b"other")])
    assert again.up_to_date and again.metrics == {"pots": 1}
    assert os.stat("out/pot.bin").st_mtime_ns == before


def test_options_that_change_no_result_do_not_count():
    make(threads=1, json=False, quiet=False, out="out", force=False)
    assert make(threads=2, json=True, quiet=True, out="./out", force=False).up_to_date


def test_an_input_counts_by_its_content_not_its_name():
    make(texts=["a.txt"])
    os.rename("a.txt", "b.txt")
    assert make(inputs=["b.txt"], texts=["b.txt"]).up_to_date
    assert make(inputs=["./b.txt"], texts=["./b.txt"]).up_to_date


def test_other_options_are_refused_and_named():
    make()
    with pytest.raises(UserError, match="--heat 900 there, 901 here") as caught:
        make(heat=901)
    assert "--force" in caught.value.hint


def test_an_input_with_other_content_is_refused_and_named():
    make()
    Path("a.txt").write_text("mud!")
    with pytest.raises(UserError, match=r"other input \(a.txt\)"):
        make()


def test_stdin_can_not_be_compared_so_an_existing_directory_is_refused():
    make(inputs=["-"])
    with pytest.raises(UserError, match=r"other input \(-\)"):
        make(inputs=["-"])


def test_a_file_that_was_cut_short_is_noticed():
    make()
    Path("out/pot.bin").write_bytes(b"p")
    with pytest.raises(UserError, match=r"pot\.bin is missing or cut short"):
        make()


def test_force_replaces_it_and_leaves_nothing_aside():
    make()
    made = make(files=[("jug.bin", b"jug")], plan={"force": True})
    assert not made.up_to_date
    assert sorted(os.listdir("out")) == ["jug.bin", "llmctl.json"] and sorted(os.listdir()) == ["a.txt", "out"]


def test_with_force_the_old_one_is_there_until_the_new_one_is_whole():
    make()
    with pytest.raises(ValueError), Output.plan(Path("out"), Call(), [], force=True) as partial:
        (partial / "jug.bin").write_bytes(b"jug")
        assert Path("out/pot.bin").read_bytes() == b"pot"
        raise ValueError
    assert Path("out/pot.bin").read_bytes() == b"pot" and sorted(os.listdir()) == ["a.txt", "out"]


def test_with_force_the_old_one_comes_back_when_the_new_one_can_not_take_its_place(monkeypatch):
    make()
    rename = os.rename

    def failing(source, target):
        if Path(source).name == "out.partial":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError):
        make(plan={"force": True})
    assert Path("out/pot.bin").read_bytes() == b"pot"


def test_force_never_removes_what_llmctl_did_not_make():
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="llmctl did not make it"):
            make(plan={"force": force})
    assert Path("out/thesis.txt").exists()


def test_an_empty_directory_is_as_good_as_none():
    Path("out").mkdir()
    make()
    assert Path("out/pot.bin").exists()


def test_nothing_is_left_of_a_command_that_fails():
    with pytest.raises(ValueError), Output.plan(Path("out"), Call(), []) as partial:
        (partial / "pot.bin").write_bytes(b"po")
        raise ValueError
    assert os.listdir() == ["a.txt"]


def test_a_plan_writes_nothing():
    output = Output.plan(Path("out"), Call(), ["a.txt"], resumable=True)
    assert not output.up_to_date and os.listdir() == ["a.txt"]


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("none/out", "none does not exist"),
        ("a.txt/out", "a.txt is not a directory"),
        ("a.txt", "not a directory"),
        (".", "wanted the name"),
        ("..", "wanted the name"),
        ("/", "wanted the name"),
    ],
)
def test_a_place_where_nothing_can_be_made_is_refused(out, told):
    with pytest.raises(UserError, match=told):
        Output.plan(Path(out), Call(), [])


def test_a_directory_without_permission_is_refused(monkeypatch):
    Path("locked").mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, whom tests may run as, may write everywhere
    with pytest.raises(UserError, match="permission"):
        Output.plan(Path("locked/out"), Call(), [])


def test_a_missing_input_is_refused():
    with pytest.raises(UserError, match=r"b\.txt does not exist"):
        Output.plan(Path("out"), Call(), ["b.txt"])


def test_what_does_not_fit_on_the_disk_is_refused_beforehand():
    with pytest.raises(UserError, match="MiB free") as caught:
        Output.plan(Path("out"), Call(), [], need=1 << 60)
    assert caught.value.code == Exit.SPACE


def test_what_an_interrupted_run_left_is_space_that_it_need_not_have_again():
    interrupted(state=b"1" * 1000)
    plan = {"invocation": Call(options={"heat": 900}), "inputs": ["a.txt"], "resumable": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        assert Output.plan(Path("out"), **plan, need=1100).resumed
        with pytest.raises(UserError, match="MiB free"):
            Output.plan(Path("out"), **plan, need=1_000_000)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, Exit.SPACE), (errno.EDQUOT, Exit.SPACE), (errno.EROFS, Exit.FAILURE)]
)
def test_a_full_or_barred_disk_is_told_in_plain_words_and_leaves_nothing(number, code):
    with pytest.raises(UserError, match=r"pot\.bin") as caught, Output.plan(Path("out"), Call(), []) as partial:
        raise OSError(number, os.strerror(number), str(partial / "pot.bin"))
    assert caught.value.code == code and os.listdir() == ["a.txt"]


def interrupted(state=b"1", **options):
    """A resumable command that is stopped after it saved its state."""
    output = Output.plan(Path("out"), Call(options={"heat": 900, **options}), ["a.txt"], resumable=True)
    with pytest.raises(KeyboardInterrupt), output as partial:
        (partial / ".state").write_bytes(state)
        raise KeyboardInterrupt
    return output


def test_a_resumable_command_goes_on_where_it_was_stopped():
    interrupted()
    assert os.listdir("out.partial") and not Path("out").exists()
    output = Output.plan(Path("out"), Call(options={"heat": 900}), ["a.txt"], resumable=True)
    assert output.resumed and not output.up_to_date
    with output as partial:
        assert (partial / ".state").read_bytes() == b"1"
        (partial / "pot.bin").write_bytes(b"pot")
    assert sorted(os.listdir("out")) == ["llmctl.json", "pot.bin"] and not Path("out.partial").exists()


def test_an_interrupted_run_with_other_options_is_not_lost_by_mistake():
    interrupted()
    with pytest.raises(UserError, match="--heat 900 there, 901 here"):
        Output.plan(Path("out"), Call(options={"heat": 901}), ["a.txt"], resumable=True)
    assert Path("out.partial/.state").exists()
    forced = Output.plan(Path("out"), Call(options={"heat": 901}), ["a.txt"], resumable=True, force=True)
    assert not forced.resumed
    with forced as partial:
        assert not (partial / ".state").exists()


def test_a_resumable_command_that_fails_before_it_saved_anything_leaves_nothing():
    output = Output.plan(Path("out"), Call(), ["a.txt"], resumable=True)
    with pytest.raises(ValueError), output as partial:
        (partial / "metrics.jsonl").write_text("{}")  # of no use without a state
        (partial / ".state").mkdir()
        raise ValueError
    assert os.listdir() == ["a.txt"]


def test_what_a_killed_command_left_is_cleared_when_it_can_not_be_resumed():
    Path("out.partial").mkdir()
    Path("out.partial/half").write_text("ha")
    make()
    assert sorted(os.listdir("out")) == ["llmctl.json", "pot.bin"]


def test_a_directory_that_lacked_only_its_rename_gets_it(monkeypatch):
    def killed(self):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Output, "_place", killed)
        patch.setattr("llmctl.spec.layout.remove", lambda path: None)  # killed: no clean-up either
        with pytest.raises(SystemExit):
            make(plan={"resumable": True})
    assert Path("out.partial/llmctl.json").exists() and not Path("out").exists()
    assert make(plan={"resumable": True}, dry_run=True).up_to_date and not Path("out").exists()
    assert make(plan={"resumable": True}).up_to_date and Path("out/pot.bin").exists()


def test_two_processes_do_not_make_the_same_directory_at_once():
    program = (
        "import sys; from pathlib import Path; from llmctl.spec.layout import Output\n"
        "class Call: command, argv, options = 'bake', [], {}\n"
        "with Output.plan(Path('out'), Call(), []) as partial:\n"
        "    print('making', flush=True); sys.stdin.readline(); (partial / 'jug').write_text('')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as other:
        assert other.stdout.readline() == "making\n"
        for attempt in (make, lambda: Output.plan(Path("out"), Call(), [])):
            with pytest.raises(UserError, match="Another process is making out"):
                attempt()
        other.stdin.write("\n")
    assert sorted(os.listdir("out")) == ["jug", "llmctl.json"] and not Path("out.partial").exists()


def test_a_directory_made_meanwhile_is_not_replaced():
    output = Output.plan(Path("out"), Call(), [])
    make()
    with pytest.raises(UserError, match="in the meantime"), output:
        pass
    assert Path("out/pot.bin").exists()


def test_a_directory_as_input_is_known_by_its_files_and_recorded_as_a_parent():
    make("first", seed=3)
    second = make("second", inputs=["first"])
    parents = read_manifest(Path("second"))["parents"]
    assert [parent["path"] for parent in parents] == ["first"] and parents[0]["seed"] == 3
    assert second.inputs[0].bytes == 3
    (Path("first") / "llmctl.json").unlink()
    assert Input.of("first").sha256 == second.inputs[0].sha256, "the same without the list in llmctl.json"
    (Path("first") / "pot.bin").write_bytes(b"pod")
    assert Input.of("first").sha256 != second.inputs[0].sha256


def test_a_file_changed_after_llmctl_json_is_read_again():
    make("first")
    before = Input.of("first").sha256
    Path("first/pot.bin").write_bytes(b"pod")  # the same size
    assert Input.of("first").sha256 != before


def test_a_digest_is_taken_over_while_size_and_time_are_the_same(monkeypatch):
    make()

    def reading(path):
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("llmctl.spec.manifest.sha256_of", reading)
    assert make().up_to_date


def test_a_named_pipe_is_not_read_to_be_compared():
    os.mkfifo("pipe")
    assert Input.of("pipe") == Input("pipe")


@pytest.mark.parametrize("text", ["{", "[]", '{"files": [{"name": 3}]}', '{"files": 3}'])
def test_a_damaged_llmctl_json_is_an_error_not_a_bug(text):
    make()
    Path("out/llmctl.json").write_text(text)
    with pytest.raises(UserError):
        Input.of("out")


def test_numbers_that_json_lacks_are_written_as_text():
    write_json(Path("m.json"), {"loss": float("nan"), "most": float("inf"), "path": Path("x"), "row": (1, 2)})
    assert json.loads(Path("m.json").read_text()) == {"loss": "nan", "most": "inf", "path": "x", "row": [1, 2]}
