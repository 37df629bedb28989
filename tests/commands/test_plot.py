"""plot, and the reading of metrics.jsonl."""

import json

import pytest

from llmctl.errors import UserError
from llmctl.spec.metrics import curve, read_metrics, smoothed


@pytest.fixture
def log(tmp_path):
    """A run going on: its directory is RUN.partial, and its last line is half written."""
    records = [{"step": n, "tokens": 10 * n, "loss": 8 / n, "lr": 0.1} for n in range(1, 31)]
    records.insert(10, {"step": 10, "tokens": 100, "heldout_loss": 1.5})
    (tmp_path / "run.partial").mkdir()
    file = tmp_path / "run.partial" / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 31, "lo')
    return file


def test_it_draws_in_a_pipe_without_color_or_bars(run, log):
    done = run("plot", "run", "--width", 60, "--height", 12)
    assert done.returncode == 0 and "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == 13 and max(map(len, lines[:-1])) <= 60
    assert "loss: 8 to 0.2667" in lines[-1] and "heldout_loss: 1.5 to 1.5" in lines[-1]


def test_json_gives_the_points(run, log):
    found = json.loads(run("plot", "run", "--json", "--x", "tokens", "--y", "heldout_loss").stdout)
    assert found["series"] == [{"name": "heldout_loss", "points": [[100, 1.5]]}]


def test_any_number_of_the_records_may_run_along_the_bottom(run):
    stages = [
        {"model": "teacher", "bytes": 40, "perplexity": 20.5},
        {"model": "student", "bytes": 10, "perplexity": 30},
    ]
    lines = "".join(json.dumps(stage) + "\n" for stage in stages)
    done = run("plot", "-", "--json", "--x", "bytes", "--y", "perplexity", stdin=lines)
    assert json.loads(done.stdout)["series"] == [{"name": "perplexity", "points": [[40, 20.5], [10, 30]]}]


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_it_writes_a_picture_and_replaces_none_unasked(run, log, tmp_path, suffix, begins):
    done = run("plot", log, "-o", f"curve.{suffix}", "--log")
    assert done.stdout == f"curve.{suffix}\n", done.stderr
    assert (tmp_path / f"curve.{suffix}").read_bytes().startswith(begins)
    assert run("plot", log, "-o", f"curve.{suffix}").returncode == 1
    assert run("plot", log, "-o", f"curve.{suffix}", "--force").returncode == 0


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["nowhere"], 1, "nowhere"),
        (["run", "--y", "lss"], 2, "heldout_loss"),
        (["run", "--x", "stpe"], 2, "step"),
        (["run", "-o", "curve.gif"], 2, ".png"),
        (["run", "--smooth", 1], 2, "--smooth"),
        (["bad.jsonl"], 1, "Line 2"),
    ],
)
def test_what_cannot_be_drawn_is_said(run, log, tmp_path, options, code, word):
    (tmp_path / "bad.jsonl").write_text('{"step": 1, "loss": 1}\nloss\n')
    done = run("plot", *options)
    assert done.returncode == code and word in done.stderr and done.stdout == ""


def test_reading_leaves_out_a_line_that_is_still_being_written(log):
    assert len(read_metrics(str(log))) == 31


def test_an_empty_log_is_said_to_be_empty(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="no records"):
        read_metrics(str(tmp_path))


def test_curves_leave_out_what_is_no_number():
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("nan")}, {"step": 4}]
    assert curve(records, "step", "loss") == [(1, 2.0)]


def test_smoothing_by_hand():
    assert smoothed([(0, 1.0), (1, 3.0)], 0.0) == [(0, 1.0), (1, 3.0)]
    assert smoothed([(0, 1.0), (1, 3.0)], 0.5) == [(0, 1.0), (1, pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75))]
