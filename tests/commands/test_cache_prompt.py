"""generate --cache-prompt: a long prompt is read once and not in every run."""

import json

from safetensors.torch import load_file, save_file

PROMPT = "the list of the things that the thing lists, the list of the things that the thing lists"


def test_a_prompt_that_a_file_keeps_goes_on_as_if_it_had_been_read(call, tiny, tmp_path):
    argv = ["generate", tiny, "--max-tokens", 12, "--json", "-p"]
    plain = [call(*argv, PROMPT).out, call(*argv, PROMPT + " and more").out]
    kept = ["--cache-prompt", "kept"]
    assert call(*argv, PROMPT, *kept) == (0, plain[0], "")
    before = (tmp_path / "kept").read_bytes()
    assert [call(*argv, PROMPT, *kept).out, call(*argv, PROMPT + " and more", *kept).out] == plain
    beams = call(*argv, PROMPT, "--beams", 3)
    assert call(*argv, PROMPT, "--beams", 3, *kept) == beams
    assert (tmp_path / "kept").read_bytes() == before
    short = call(*argv, "a thing", *kept)
    assert short.out == call(*argv, "a thing").out and "does not begin as that of kept does: 0 of" in short.err

    tensors = load_file(tmp_path / "kept")
    said = json.loads(before[8 : 8 + int.from_bytes(before[:8], "little")])["__metadata__"]
    save_file({**tensors, "values.1": -3 * tensors["values.1"]}, tmp_path / "kept", said)
    assert call(*argv, PROMPT, *kept).out != plain[0]  # it is what the file says that the model goes on from


def test_what_cannot_be_kept_is_refused(call, tiny, tmp_path):
    argv = ["generate", tiny, "-p", PROMPT, "--max-tokens", 2, "--cache-prompt"]
    for more, words in ((["--kv-dtype", "int8"], "8 bits"), (["--contrastive", 0.6], "contrastive search")):
        done = call(*argv, "kept", *more)
        assert (done.code, done.out) == (4, "") and words in done.err
    assert call(*argv, "kept").code == 0
    other = call(*argv, "kept", "--dtype", "bf16")
    assert (other.code, other.out) == (4, "") and "rm kept" in other.err
    nowhere = call(*argv, "no/where")
    assert (nowhere.code, nowhere.out) == (1, "") and "no" in nowhere.err and "bug" not in nowhere.err
    assert call(*argv, tiny / "model.safetensors").code == 4
    lines = call("generate", tiny, "-", "--cache-prompt", "kept", stdin=b'{"prompt": 1}\n{"prompt": "the"}\n')
    assert lines.code == 3 and len(lines.out.splitlines()) == 2
    assert not list(tmp_path.glob(".kept*"))
