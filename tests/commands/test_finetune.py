"""finetune as a user meets it: what it prints and writes, what comes after it in a pipe, and what it refuses."""

import json
import signal
import time

import pytest

from llmctl.core.checkpoint.directory import save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.train import train_tokenizer
from tests.core.variants import VARIANTS

SAYS = [{"prompt": f"{a} and {b} is", "completion": f" {a + b}"} for a in range(8) for b in range(6)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A decoder of bytes with random weights."""
    directory = tmp_path_factory.mktemp("base") / "base"
    directory.mkdir()
    tokenizer = train_tokenizer([], "byte")
    tokenizer.save(directory)
    config = VARIANTS["llama"].resized(vocab=tokenizer.size, eos=(tokenizer.eos,), bos=None, context=64)
    save_checkpoint(directory, initialise(Transformer(config), 0), config)
    return directory


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in SAYS))
    return path


def test_an_adapter_goes_through_the_pipe_and_what_it_learned_is_recorded(call, tmp_path, base, sums):
    old = tmp_path / "old.txt"
    old.write_text("What was there before, and is to stay.\n" * 5)
    options = ("--steps", 3, "--retain", old, "--mix-pretrain", f"{old}:0.2", "--split", 0.8)
    made = call("finetune", base, sums, "-o", "ad", *options)
    assert made.code == 0 and made.out == "ad\n", made.err
    assert "lora trains" in made.err and "[ " in made.err  # how much, and an example with its trained part
    about = json.loads((tmp_path / "ad" / "llmctl.json").read_text())
    kept = {"heldout_loss", "heldout_loss_before", "retain_perplexity", "retain_perplexity_before", "trained_tokens"}
    assert kept <= about["metrics"].keys() and about["metrics"]["task"] == "lm"
    assert call("finetune", base, sums, "-o", "ad", *options, "--json").out.count('"up_to_date": true') == 1
    other = call("finetune", base, sums, "-o", "ad", *options, "--rank", 4)
    assert other.code == 1 and "--rank 8 there, 4 here" in other.err
    merged = call("lora-merge", "-", "-o", "merged", "--check", stdin=b"ad\n")
    assert merged.code == 0 and merged.out.splitlines()[-1] == "merged", merged.err
    said = [
        call("generate", model, "-p", "3 and 4 is", "--max-tokens", 5, "--dtype", "fp32") for model in ("ad", "merged")
    ]
    assert said[0].code == 0 and said[0].out == said[1].out, said[0].err
    sound = call("verify", "ad", "--json")
    assert sound.code == 0 and json.loads(sound.out)["checked"][0]["kind"] == "adapter"
    assert json.loads(call("inspect", "ad", "--json").out)["parameters"] == about["metrics"]["trained_parameters"]


def test_a_conversation_is_saved_with_its_template_and_its_end(call, tmp_path, base):
    turns = [{"role": "user", "content": "1 and 2?"}, {"role": "assistant", "content": "3"}]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 3)
    made = call("finetune", base, "chat.jsonl", "-o", "full", "--method", "full", "--steps", 1, "--split", 1)
    assert made.code == 0, made.err
    assert "Assistant" in (tmp_path / "full" / "chat_template.jinja").read_text()
    assert "chat_template" in json.loads((tmp_path / "full" / "tokenizer_config.json").read_text())
    assert json.loads((tmp_path / "full" / "generation_config.json").read_text())["eos_token_id"]


def test_what_it_would_do_is_said_without_doing_it(call, tmp_path, base, sums):
    said = call(
        "finetune", base, sums, "-o", "ad", "--dry-run", "--json", "--method", "dora", "--targets", "attention.q"
    )
    facts = json.loads(said.out)
    assert facts["trained_parameters"] == 2 * (8 * (24 + 24) + 24) and facts["task"] == "lm"
    assert not (tmp_path / "ad").exists() and not (tmp_path / "ad.partial").exists()


@pytest.mark.parametrize(
    "options, code, words",
    [
        (["--method", "loar"], 2, "lora"),
        (["--targets", "attn.q"], 2, "attention.q"),
        (["--max-length", "9"], 2, "--truncate"),
        (["--task", "seq2seq"], 4, "encoder-decoder"),
        (["--mix-pretrain", "old.txt"], 2, "FILE:SHARE"),
        (["--retain", "absent.txt"], 1, "absent.txt does not exist"),
        (["--method", "full", "--base-dtype", "nf4"], 2, "--base-dtype nf4"),
        (["--map", "prompt=ask"], 1, "ask"),
        (["--problem", "regression"], 2, "the task is lm"),
        (["--eval", "old.txt"], 1, "no records in old.txt"),
        (["--eval", "-", "--retain-task", "-"], 2, "stdin can be read once"),
        (["--seed", "-1"], 2, "--seed is -1"),
    ],
)
def test_what_cannot_be_done_is_said_in_two_lines(call, tmp_path, base, sums, options, code, words):
    (tmp_path / "old.txt").touch()
    ended = call("finetune", base, sums, "-o", "ad", "--steps", 1, *options)
    assert ended.code == code and words in ended.err and not ended.out, ended.err
    assert [line[:6] for line in ended.err.splitlines()[-2:]] == ["error:", "hint: "]
    assert not (tmp_path / "ad").exists()


def test_a_table_without_names_is_learnt_by_the_numbers_of_its_columns_and_its_labels_are_said(call, tmp_path, base):
    lines = [f"{'good' if at % 2 else 'bad'} film {at}\t{at % 2}\n" for at in range(30)]
    (tmp_path / "a.tsv").write_text("".join(lines))
    unnamed = call("finetune", base, "a.tsv", "-o", "ad", "--steps", 1)
    assert unnamed.code == 4 and "columns of CSV and TSV by number" in unnamed.err
    made = call(
        "finetune", base, "a.tsv", "-o", "ad", "--steps", 1, "--split", 1, "--map", "text=1", "--map", "label=2"
    )
    assert made.code == 0 and "task classify, one of 2 labels (0, 1): 30 examples" in made.err, made.err


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(run, start, tmp_path, base, sums):
    command = ("finetune", base, sums, "-o", "ad", "--steps", 150, "--eval-every", 150)
    first = start(*command)
    for _ in range(600):
        time.sleep(0.1)
        if (log := tmp_path / "ad.partial" / "metrics.jsonl").exists() and log.read_bytes().count(b"\n") > 20:
            break
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 75 and "goes on" in said
    again = run(*command)
    assert again.returncode == 0 and "Going on after step" in again.stderr
