"""memcalc: its sources, its keys, what it solves and what it refuses."""

import json

import pytest

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.errors import Exit, UserError
from llmctl.spec.amount import size_of

PARTS = ("weights", "gradients", "optimizer", "master_weights", "activations", "logits", "kv_cache")


def report(ended) -> dict:
    assert (ended.code, ended.err) == (0, ""), ended.err
    return json.loads(ended.out)


def test_a_checkpoint_its_config_json_and_its_path_on_stdin_are_the_same_model(call, tiny):
    found = report(call("memcalc", tiny, "--json"))
    assert found["parameters"] == sum(p.numel() for p in Checkpoint.open(tiny).model().parameters())
    for other in (call("memcalc", tiny / "config.json"), call("memcalc", "-", stdin=f"{tiny}\n".encode())):
        assert report(other) | {"model": ""} == found | {"model": ""}


def test_the_report_has_the_keys_that_scripts_rely_on(call):
    found = report(call("memcalc", "--preset", "124m", "--family", "gpt2", "--batch", "2"))
    assert found["schema"] == "llmctl/memcalc/1"
    assert found["parameters"] == found["trainable_parameters"] == 124_439_808
    assert found["chinchilla_tokens"] == 20 * 124_439_808
    assert tuple(found["bytes"]) == (*PARTS, "total")
    assert found["bytes"]["total"] == sum(found["bytes"][name] for name in PARTS)
    assert found["bytes"]["activations"] == sum(found["activation_bytes"].values())
    assert all(isinstance(size, int) for size in found["bytes"].values())
    assert found["flops_per_token"] == found["flops"]["training"] == pytest.approx(6 * 124e6, rel=0.2)


def test_a_token_directory_gives_a_preset_its_vocabulary(call, tmp_path):
    (tmp_path / "tokens.json").write_text('{"vocab": 4096}')
    assert report(call("memcalc", tmp_path, "--preset", "5m"))["parameters"] == 5_475_584
    assert call("memcalc", tmp_path).code == Exit.USAGE
    (tmp_path / "tokens.json").write_text("{}")
    assert call("memcalc", tmp_path, "--preset", "5m").code == Exit.MISMATCH


def test_the_classic_rule_says_in_one_line_where_its_24_bytes_come_from(call):
    ended = call("memcalc", "--preset", "1b", "--rule", "classic")
    found = json.loads(ended.out)
    assert found["bytes"]["total"] == 24 * found["parameters"]
    assert ended.err.count("\n") == 1 and "24 GB" in ended.err and "80 GB" in ended.err


def test_fit_solves_and_says_what_is_left(call):
    argv = ("memcalc", "--preset", "1b", "--mode", "inference", "--fit", "24GiB", "--solve", "sequence")
    found = report(call(*argv))
    fit = found["fit"]
    assert (fit["solve"], fit["bytes"], found["sequence"]) == ("sequence", 24 * 2**30, fit["value"])
    assert fit["free"] == fit["bytes"] - found["bytes"]["total"] >= 0
    assert found["bytes"]["kv_cache"] == found["kv_cache_bytes_per_token"] * fit["value"]


def test_what_does_not_fit_ends_with_5_and_two_lines(call):
    ended = call("memcalc", "--preset", "8b", "--fit", "24GiB")
    assert (ended.code, ended.out) == (Exit.SPACE, "")
    problem, hint = ended.err.splitlines()
    assert problem.startswith("error: --fit 24.00 GiB: even --batch 1 needs")
    assert hint.startswith("hint:")


def test_time_is_operations_over_the_speed_of_all_devices(call):
    argv = ("memcalc", "--preset", "1b", "--tokens", "1e9", "--flops", "4e14", "--data-parallel", "8")
    found = report(call(*argv))
    assert found["flops_total"] == 10**9 * found["flops"]["spent"]
    assert found["seconds"] == pytest.approx(found["flops_total"] / (8 * 4e14))


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ((), Exit.USAGE),
        (("--preset", "7q"), Exit.USAGE),
        (("--preset", "5m", "--batch", "0"), Exit.USAGE),
        (("--preset", "5m", "--fit", "lots"), Exit.USAGE),
        (("--preset", "5m", "--fit", "1GB", "--rule", "classic"), Exit.USAGE),
        (("--preset", "5m", "--flops", "0"), Exit.USAGE),
        (("--preset", "5m", "--quantize", "int4"), Exit.USAGE),
        (("--preset", "5m", "--heads", "7"), Exit.MISMATCH),
        (("--preset", "5m", "--source", "64"), Exit.MISMATCH),
        (("--preset", "5m", "--scored", "0"), Exit.USAGE),
        (("--preset", "5m", "--encoder-layers", "2"), Exit.MISMATCH),
        (("--preset", "5m", "--family", "bert", "--implementation", "megatron"), Exit.MISMATCH),
        (("--preset", "5m", "--family", "t5", "--implementation", "hf", "--precision", "pure"), Exit.MISMATCH),
        (("--preset", "5m", "--tensor-parallel", "3"), Exit.MISMATCH),
    ],
)
def test_what_makes_no_sense_is_refused_in_two_lines(call, argv, code):
    ended = call("memcalc", *argv)
    assert (ended.code, ended.out) == (code, "")
    assert [line[:6] for line in ended.err.splitlines()] == ["error:", "hint: "]


def test_an_encoder_decoder_has_rows_of_two_lengths(call):
    argv = ("memcalc", "--preset", "30m", "--family", "t5", "--sequence", "114")
    same, longer = report(call(*argv)), report(call(*argv, "--source", "512"))
    assert (same["kind"], same["sequence"], same["source"]) == ("encoder-decoder", 114, 114)
    assert (longer["sequence"], longer["source"], longer["scored"]) == (114, 512, 1.0)
    assert longer["bytes"]["activations"] > same["bytes"]["activations"]
    used = report(call(*argv, "--source", "512", "--mode", "inference"))
    assert used["bytes"]["kv_cache"] == (512 + 114) * used["kv_cache_bytes_per_token"]


def test_an_encoder_is_asked_for_a_share_of_its_tokens_and_keeps_no_cache(call):
    argv = ("memcalc", "--preset", "5m", "--family", "bert")
    masked, whole = report(call(*argv)), report(call(*argv, "--scored", "1"))
    assert masked["scored"] == 0.15 and masked["flops_per_token"] < whole["flops_per_token"]
    assert masked["flops"]["forward"] == masked["flops"]["forward_causal"]
    assert report(call(*argv, "--mode", "inference"))["bytes"]["kv_cache"] == 0


def test_sums_of_linear_attention_take_the_same_room_for_any_row(call):
    argv = ("memcalc", "--preset", "5m", "--family", "native", "--attention", "linear", "--mode", "inference")
    short, long = (report(call(*argv, "--sequence", length)) for length in ("10", "100000"))
    assert short["bytes"]["kv_cache"] == long["bytes"]["kv_cache"] > 0
    assert long["kv_cache_bytes_per_token"] == 0


def test_fewer_layers_than_a_checkpoint_has_keep_their_windows(call, tmp_path):
    config = {"model_type": "llmctl", "vocab": 100, "width": 32, "layers": 4, "heads": 4, "ff": 64, "context": 64}
    config |= {"window": 8, "window_layers": [0, 3], "rope_skip": [3]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = report(call("memcalc", tmp_path / "config.json", "--layers", "2", "--mode", "inference"))
    assert found["bytes"]["kv_cache"] == 2 * 2 * 32 * (8 + 64)


def test_a_preset_beside_a_checkpoint_is_refused_and_a_changed_dimension_is_not(call, tiny):
    assert call("memcalc", tiny, "--preset", "5m").code == Exit.USAGE
    assert report(call("memcalc", tiny, "--layers", "4"))["parameters"] > report(call("memcalc", tiny))["parameters"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5 MiB", 1572864), ("500m", 500 * 10**6), ("4096", 4096)],
)
def test_sizes_are_read_in_units_of_1000_and_of_1024(text, size):
    assert size_of(text, "--fit") == size
    with pytest.raises(UserError):
        size_of(f"{text} or so", "--fit")


def test_a_method_is_given_as_to_finetune_and_says_what_it_trains(call):
    argv = ("memcalc", "--preset", "124m", "--family", "gpt2", "--sequence", "128", "--method")
    found = {name: report(call(*argv, name)) for name in ("full", "lora", "qlora", "prompt")}
    assert [one["method"] for one in found.values()] == [*found]
    assert found["full"]["bytes"] == report(call(*argv[:-1]))["bytes"]
    assert found["lora"]["trainable_parameters"] == 12 * 8 * 6 * 768  # q, k and v share their A
    assert found["prompt"]["trainable_parameters"] == 20 * 768
    sizes = [one["bytes"]["total"] for one in found.values()]
    assert sizes[0] > sizes[1] > sizes[2]
    wide, narrow = (report(call(*argv, "lora", "--stored", kind))["bytes"]["weights"] for kind in ("fp32", "bf16"))
    assert narrow < wide
    solved = report(call(*argv, "lora", "--fit", "4GiB", "--solve", "lora-rank"))
    assert solved["fit"]["value"] > 8 and solved["bytes"]["total"] <= 4 * 2**30


def test_two_ways_to_say_what_is_trained_are_refused(call):
    for more in (("--lora-rank", "4"), ("--quantize", "nf4"), ("--mode", "inference")):
        ended = call("memcalc", "--preset", "5m", "--method", "lora", *more)
        assert ended.code == Exit.USAGE and more[0] in ended.err
