"""generate: beams and contrast, as a user asks for them: several texts with scores, the tree, what goes with what."""

import json
import shutil

import pytest

SHORT = ["--max-tokens", "6"]


def record(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_the_best_texts_come_first_with_their_scores(call, tiny):
    made = record(call("generate", tiny, "-p", "the list", "--beams", 4, "--n", 3, *SHORT, "--json"))
    assert len(made["completions"]) == len(made["finish_reason"]) == 3
    assert made["score"] == sorted(made["score"], reverse=True)
    best = call("generate", tiny, "-p", "the list", "--beams", 4, *SHORT)
    assert best == (0, made["completions"][0], "")
    greedy = record(call("generate", tiny, "-p", "the list", *SHORT, "--json", "--logprobs", 0))
    mean = sum(one["logprob"] for one in greedy["logprobs"]) / len(greedy["logprobs"])
    assert made["score"][0] >= mean - 1e-4


def test_prompts_of_a_file_are_searched_each_as_alone(call, tiny):
    prompts = ["the", "the list of the things", "a", "things that list", "the"]
    lines = "".join(f"{prompt}\n" for prompt in prompts).encode()
    alone = [call("generate", tiny, "-p", prompt, "--beams", 3, *SHORT).out for prompt in prompts]
    for size in (1, 7, 16):
        done = call("generate", tiny, "-", "--beams", 3, *SHORT, "--batch-size", size, "--json", stdin=lines)
        assert [json.loads(line)["completion"] for line in done.out.splitlines()] == alone


def test_a_tree_leads_to_each_text(call, tiny):
    asked = ["-p", "the list", "--beams", 4, "--beam-groups", 2, "--diversity", 1, "--n", 2, "--explain", *SHORT]
    made = record(call("generate", tiny, *asked, "--json"))
    for text, score, at in zip(made["completions"], made["score"], made["branch"], strict=True):
        assert made["tree"][at]["fate"] == "ended"
        assert made["tree"][at]["score"] / 6 == pytest.approx(score)
        pieces = []
        while at >= 0:
            pieces.insert(0, made["tree"][at]["text"])
            at = made["tree"][at]["parent"]
        assert len(pieces) == 6 and (pieces[0] in text or "\ufffd" in text)
    shown = call("generate", tiny, *asked)
    assert shown.err.count("→") == 6 and "token 6: 8 branches" in shown.err and "group" in shown.err


def test_contrast_is_explained_by_likeness_and_worth(call, tiny):
    asked = ["-p", "the list", "--contrastive", 0.6, "--candidates", 3, "--explain", *SHORT]
    made = record(call("generate", tiny, *asked, "--json"))
    assert len(made["steps"]) == 6
    for step in made["steps"]:
        first = step["candidates"][0]
        assert len(step["candidates"]) == 3 and step["chosen"]["id"] == first["id"]
        assert first["worth"] == max(one["worth"] for one in step["candidates"])
        for one in step["candidates"]:
            assert one["worth"] == pytest.approx(0.4 * one["chances"][-1] - 0.6 * one["alike"], abs=1e-5)
    shown = call("generate", tiny, *asked)
    assert "alike" in shown.err and shown.err.count("→") == 6
    assert shown.out == made["completion"]


def test_what_a_checkpoint_says_of_its_search_is_done_and_may_be_turned_off(call, tiny, tmp_path):
    said = tmp_path / "said"
    shutil.copytree(tiny, said)
    (said / "generation_config.json").write_text('{"num_beams": 3, "length_penalty": 0.5, "num_return_sequences": 2}')
    asked = ["-p", "the list", *SHORT]
    wanted = call("generate", tiny, *asked, "--beams", 3, "--length-penalty", 0.5, "--n", 2).out
    assert call("generate", said, *asked).out == wanted
    greedy = call("generate", tiny, *asked).out
    assert call("generate", said, *asked, "--beams", 1).out == greedy
    warm = ["--temperature", 1, "--seed", 3]
    assert call("generate", said, *asked, *warm).out == call("generate", tiny, *asked, *warm).out
    (said / "generation_config.json").write_text('{"num_beams": "many"}')
    done = call("generate", said, *asked)
    assert done.code == 4 and "num_beams is 'many'" in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--beams", 0], "--beams is 0"),
        (["--beams", 4, "--n", 5], "--n is 5, but there are 4 beams"),
        (["--beams", 4, "--best-of", 5], "--best-of"),
        (["--beams", 4, "--beam-groups", 3], "--beam-groups 3"),
        (["--beams", 4, "--lookup"], "--beams"),
        (["--early-stopping", "true"], "--early-stopping"),
        (["--contrastive", 0.6, "--temperature", 1], "--contrastive takes no chance"),
        (["--contrastive", 0.6, "--n", 2], "--contrastive gives one text"),
        (["--contrastive", 0.6, "--lookup"], "token by token"),
        (["--candidates", 5], "--candidates"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_read(call, tiny, options, told):
    done = call("generate", tiny, "-p", "the", *options)
    assert (done.code, done.out) == (2, "") and told in done.err and done.err.count("\n") == 2
