"""Fields of a dataclass as options: their types, their help, where their values come from, and what is recorded."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.main import get_command

from llmctl import flags
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, invocation, model_path
from llmctl.program import Program, refusal


@dataclass(frozen=True)
class Kiln:
    """How the pots are fired.

    Raises:
        UserError: too hot.
    """

    heat: Annotated[float, "In degrees."] = 900.0
    hours: Annotated[int | None, "How long."] = None
    glaze: Annotated[Literal["ash", "salt"], "What covers the pot."] = "ash"
    wood: Annotated[bool, "Fire with wood."] = True
    marks: Annotated[tuple[str, ...], typer.Option("--mark", help="Stamped on the base.")] = ("hand",)

    def __post_init__(self) -> None:
        if self.heat > 1500:
            raise UserError(f"--heat is {self.heat}, wanted 1500 or less.")
        if self.hours == 13:
            raise UserError("--hours is 13.", code=Exit.MISMATCH)


made = []


@expand
def bake_pots(
    clay: Annotated[list[Path], typer.Argument(help="Lumps.")],
    kiln: Kiln,
    shown: Shown,
    from_: Annotated[Path | None, "An earlier firing."] = None,
    seed: Annotated[int, typer.Option(help="Of the cracks.", min=0, max=9)] = 0,
) -> None:
    """Bake pots."""
    made.append((clay, kiln, shown, from_, seed))


def bake(*argv):
    """Runs the command in this process and gives what it was called with."""
    app = typer.Typer(cls=Program, add_completion=False)
    app.callback()(lambda: None)
    program = get_command(app)
    program.functions = {"bake-pots": bake_pots, "bake-pots-twice": bake_pots}
    try:
        with program.make_context("llmctl", ["bake-pots", *map(str, argv)]) as context:
            program.invoke(context)
    except typer.TyperException as error:
        raise refusal(error) from error
    return made.pop()


def test_fields_left_out_have_the_dataclass_s_defaults():
    clay, kiln, shown, before, seed = bake("a", "b")
    assert (clay, kiln, shown, before, seed) == ([Path("a"), Path("b")], Kiln(), Shown(), None, 0)


def test_each_type_of_field_is_read_as_an_option():
    fire = ["--heat", "1e3", "--hours=7", "--glaze", "salt", "--no-wood", "--mark", "x", "--mark", "y"]
    _, kiln, shown, before, _ = bake("a", *fire, "--from", "b", "--json", "-q", "--no-color")
    assert kiln == Kiln(heat=1000.0, hours=7, glaze="salt", wood=False, marks=("x", "y"))
    assert shown == Shown(json=True, quiet=True, color=False) and before == Path("b")


@pytest.mark.parametrize(("text", "number"), [("1000", 1000), ("1_000", 1000), ("1e3", 1000), ("-4", -4)])
def test_whole_numbers_may_have_an_exponent_or_underscores(text, number):
    assert bake("a", "--hours", text)[1].hours == number


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--hours", "1.5"], "--hours is '1.5'; wanted a whole number."),
        (["--hours", "inf"], "--hours is 'inf'; wanted a whole number."),
        (["--heat", "hot"], "--heat is 'hot'; wanted a number."),
        (["--heat", "nan"], "--heat is 'nan'; wanted a number."),
        (["--glaze", "sault"], "--glaze is 'sault'; wanted ash or salt."),
        (["--from", ""], "--from is ''; wanted a path."),
        (["--seed", "10"], "--seed is 10; wanted at most 9."),
        (["--hours"], "--hours needs a value."),
        (["--json=1"], "--json takes no value."),
        (["--haet", "3"], "llmctl bake-pots has no option --haet."),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(argv, told):
    with pytest.raises(UserError) as caught:
        bake("a", *argv)
    assert caught.value.problem == told and caught.value.code == Exit.USAGE and caught.value.hint


def test_a_mistyped_choice_or_option_gets_the_one_that_was_meant():
    for argv, meant in ((["--glaze", "sault"], "salt"), (["--haet", "3"], "--heat")):
        with pytest.raises(UserError) as caught:
            bake("a", *argv)
        assert caught.value.hint == f"Did you mean {meant}?"


def test_what_the_dataclass_refuses_is_a_usage_error_unless_it_says_otherwise():
    for argv, code in ((["--heat", "1600"], Exit.USAGE), (["--hours", "13"], Exit.MISMATCH)):
        with pytest.raises(UserError) as caught:
            bake("a", *argv)
        assert caught.value.code == code


def test_the_invocation_records_every_option_by_the_name_of_its_flag(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["llmctl", "bake-pots", "a"])
    bake("a", "--from", "b", "--mark", "x")
    assert invocation().command == "bake-pots" and invocation().argv == ["bake-pots", "a"]
    assert invocation().options == {
        "clay": ["a"],
        "heat": 900.0,
        "hours": None,
        "glaze": "ash",
        "wood": True,
        "mark": ["x"],
        "json": False,
        "quiet": False,
        "color": True,
        "from": "b",
        "seed": 0,
    }


def test_a_flag_wins_over_the_environment_and_that_over_the_file(monkeypatch, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[bake-pots]\nheat = 1\nhours = 1\nglaze = 'salt'\nwood = false\nmark = ['t', 'u']\n")
    monkeypatch.setenv("LLMCTL_BAKE_POTS_HEAT", "2")
    monkeypatch.setenv("LLMCTL_BAKE_POTS_HOURS", "2")
    _, kiln, *_ = bake("a", "--hours", "3", "--config", file)
    assert kiln == Kiln(heat=2.0, hours=3, glaze="salt", wood=False, marks=("t", "u"))


def test_an_empty_variable_is_an_absent_one(monkeypatch):
    monkeypatch.setenv("LLMCTL_BAKE_POTS_HEAT", "")
    assert bake("a")[1].heat == 900.0


@pytest.mark.parametrize(("text", "value"), [("1", True), ("no", False), ("TRUE", True), ("off", False)])
def test_a_variable_of_a_flag_is_a_truth_value(monkeypatch, text, value):
    monkeypatch.setenv("LLMCTL_BAKE_POTS_WOOD", text)
    assert bake("a")[1].wood is value


def test_a_variable_of_a_command_whose_name_goes_on_is_left_to_that_command(monkeypatch):
    monkeypatch.setenv("LLMCTL_BAKE_POTS_TWICE_NOTHING", "1")
    bake("a")


def test_a_wrong_value_is_told_by_the_place_that_it_came_from(monkeypatch, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[bake-pots]\nheat = [1]\n")
    with pytest.raises(UserError, match=r"run\.toml: \[bake-pots\] heat is \[1\]; wanted a number"):
        bake("a", "--config", file)
    monkeypatch.setenv("LLMCTL_BAKE_POTS_HOURS", "x")
    with pytest.raises(UserError, match=r"^LLMCTL_BAKE_POTS_HOURS is 'x'; wanted a whole number"):
        bake("a")


def test_a_wrong_value_that_a_flag_overrides_does_not_matter(monkeypatch):
    monkeypatch.setenv("LLMCTL_BAKE_POTS_HOURS", "x")
    assert bake("a", "--hours", "4")[1].hours == 4


def test_two_fields_of_one_name_are_refused_when_the_command_is_defined():
    with pytest.raises(TypeError, match="heat"):

        @expand
        def twice(kiln: Kiln, heat: int = 0) -> None:
            """Never."""


def test_help_groups_options_by_dataclass_and_shows_choices_and_defaults(capsys):
    with pytest.raises(typer.Exit):
        bake("--help")
    page = " ".join(capsys.readouterr().out.split())
    assert "CLAY... Lumps." in page
    assert "How the pots are fired: --heat X In degrees. [default: 900.0]" in page
    assert "--glaze ash|salt What covers the pot. [default: ash]" in page
    assert "--[no-]wood" in page and "-q, --[no-]quiet" in page


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "mps"])
def test_devices_are_known(device):
    assert Compute(device=device).device == device


@pytest.mark.parametrize("wrong", [{"device": "gpu"}, {"device": "cuda:"}, {"threads": -1}])
def test_other_devices_and_negative_threads_are_refused(wrong):
    with pytest.raises(UserError) as caught:
        Compute(**wrong)
    assert caught.value.code == Exit.USAGE


def test_a_dash_reads_one_path_from_stdin_and_is_recorded_as_that_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    monkeypatch.setattr(sys, "stdin", io.StringIO("base\nrest\n"))
    monkeypatch.setattr(flags, "_running", flags.Invocation("generate", [], {"model": "-", "seed": 0}))
    assert model_path("-") == Path("base")
    assert invocation().options == {"model": "base", "seed": 0}
    assert sys.stdin.read() == "rest\n"


def test_a_dash_without_a_path_on_stdin_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(UserError, match="stdin holds none"):
        model_path("-")


def test_a_dash_given_twice_is_refused(monkeypatch):
    monkeypatch.setattr(flags, "_running", flags.Invocation("x", [], {"model": "-", "texts": ["-"]}))
    with pytest.raises(UserError, match="model and for texts"):
        model_path("-")


def test_a_path_where_nothing_lies_is_refused():
    with pytest.raises(UserError, match="nowhere does not exist"):
        model_path("nowhere")
