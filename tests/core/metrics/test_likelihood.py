"""Likelihoods: those of transformers and of lm-eval, the same alone and beside others, and what is shared read once."""

import random
from dataclasses import replace

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.metrics import scored as module
from llmctl.core.metrics.branches import splits, trunks
from llmctl.core.metrics.likelihood import continuation, likelihoods
from llmctl.core.metrics.scored import Asked
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.model.virtual import Prompt
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from tests.core.variants import VARIANTS

SCORERS = [name for name, config in VARIANTS.items() if config.lm_head and config.kind != "encoder"]


def model_of(name: str, context: int = 64) -> Transformer:
    return initialise(Transformer(replace(VARIANTS[name], context=context)), seed=3).eval()


def questions(model: Transformer, shots: int = 20, count: int = 5) -> list[Asked]:
    """Choices of questions that are all shown after the same examples; and a text by itself."""
    chance = random.Random(1)

    def drawn(length: int) -> list[int]:
        return [chance.randrange(model.config.vocab) for _ in range(length)]

    both, shown = model.config.kind == "encoder-decoder", drawn(shots)
    found = []
    for _ in range(count):
        context, source = (
            ([0], tuple(drawn(chance.randint(2, 9)))) if both else (shown + drawn(chance.randint(1, 24)), ())
        )
        for _ in range(3):
            choice = drawn(chance.randint(1, 6))
            found.append(Asked([*context, *choice], len(choice), source))
    return [*found, Asked(drawn(30), 29, (1, 2) if both else ())]


def reads(model: Transformer) -> list[int]:
    """Gets the number of places of each pass that follows."""
    sizes: list[int] = []
    stack = model.last_stack
    stack.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[0] * given[0].shape[1]))
    return sizes


@pytest.mark.parametrize("name", SCORERS)
def test_what_is_read_together_is_scored_as_what_is_read_alone(name):
    model = model_of(name)
    asked = questions(model)
    alone = [next(likelihoods(model, [one])) for one in asked]
    for batch_tokens in (90, 400, 8192):
        found = list(likelihoods(model, asked, batch_tokens))
        assert [one.tokens for one in found] == [one.scored for one in asked]
        assert [one.nll for one in found] == pytest.approx([one.nll for one in alone], rel=2e-5)  # fp32, other shapes
        assert [one.greedy for one in found] == [one.greedy for one in alone]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_virtual_tokens_stand_before_what_is_shared_too(name):
    model = model_of(name, context=60)
    model.prompt = Prompt(torch.randn(5, model.config.width, generator=torch.Generator().manual_seed(2)))
    asked = questions(model)
    assert max(len(one.ids) for one in asked) > 45  # near the end of the learned positions
    alone = [next(likelihoods(model, [one])) for one in asked]
    assert [one.nll for one in likelihoods(model, asked)] == pytest.approx([one.nll for one in alone], rel=2e-5)


def test_what_neighbours_share_passes_through_the_model_once():
    model = model_of("llama")
    asked = questions(model, shots=30)[:-1]
    list(likelihoods(model, asked[:3]))  # compiled parts are made
    sizes = reads(model)
    list(likelihoods(model, asked))
    together = sum(sizes)
    sizes.clear()
    for one in asked:
        list(likelihoods(model, [one]))
    assert together < sum(sizes) / 3
    assert splits(model, 64) and not splits(model_of("prefix"), 64)


def test_groups_are_neighbours_that_share_what_is_worth_it_and_fit_a_batch():
    head = list(range(40))
    pool = [Asked([*head, 1, 2], 2), Asked([*head, 3], 1), Asked([9, *head], 1), Asked([9, *head[:20], 7, 7], 1)]
    assert [group.members for group in trunks(pool, 1000)] == [(0, 1), (2, 3)]
    assert [group.shared for group in trunks(pool, 1000)] == [39, 21]
    assert [group.members for group in trunks(pool, 60)] == [(0,), (1,), (2,), (3,)]
    assert [group.shared for group in trunks(pool, 1000, apart=True)] == [0] * 4


def test_log_probabilities_of_each_token_and_chunks_of_logits(monkeypatch):
    model = model_of("gpt2")
    asked = questions(model)
    whole = list(likelihoods(model, asked, each=True))
    monkeypatch.setattr(module, "LOGIT_BYTES", 3 * 4 * model.config.vocab)
    for one, chunked in zip(whole, likelihoods(model, asked, each=True), strict=True):
        assert one.nll == pytest.approx(-sum(one.logprobs), abs=1e-9) and len(one.logprobs) == one.tokens
        assert one.logprobs == pytest.approx(chunked.logprobs, abs=1e-5)
    best = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(4):
        best = torch.cat([best, model.head(model(best)[:, -1:]).argmax(-1)], 1)
    assert next(likelihoods(model, [Asked(best[0].tolist(), 4)])).greedy
    assert not next(likelihoods(model, [Asked([*best[0].tolist()[:-1], (int(best[0, -1]) + 1) % 61], 4)])).greedy


def test_a_long_context_loses_its_beginning_and_a_long_text_is_refused():
    model = model_of("gpt2", context=16)
    ids = [chance % 61 for chance in range(5, 200, 7)]
    found = next(likelihoods(model, [Asked(ids, 4)]))
    assert found.nll == pytest.approx(next(likelihoods(model, [Asked(ids[-17:], 4)])).nll, rel=1e-6)
    with pytest.raises(UserError, match="17 tokens are to be scored, but the model reads 16") as caught:
        list(likelihoods(model, [Asked(ids, 17)]))
    assert caught.value.code == 4
    with pytest.raises(ValueError, match="at least one before"):
        list(likelihoods(model, [Asked([1, 2], 2)]))


def test_an_encoder_decoder_scores_answers_as_transformers_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"vocab_size": 50, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**small, decoder_start_token_id=0)).eval()
    theirs.save_pretrained(tmp_path)
    asked = [Asked([0, *answer], len(answer), source)
             for source in ((5, 6, 7, 1), (9, 8, 1)) for answer in ([3, 4], [11, 12, 13, 1])]  # fmt: skip
    found = list(likelihoods(Checkpoint.open(tmp_path).model(), asked))
    for one, ours in zip(asked, found, strict=True):
        with torch.no_grad():
            loss = theirs(input_ids=torch.tensor([one.encoder]), labels=torch.tensor([one.targets])).loss
        assert ours.nll == pytest.approx(float(loss) * one.scored, rel=1e-5)


def test_choices_are_scored_as_lm_eval_does(learned):
    """Contexts that end in a space, one that is empty, a continuation that merges with nothing before it."""
    lm_eval = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    theirs = lm_eval.HFLM(pretrained=str(learned.path), batch_size=3, device="cpu", dtype="float32")
    pairs = [("The list of ", "things"), ("The list of", " things"), ("", "Return the value."), ("a\nb", "\nc d"),
             ("The list of", " strings and a number"), ("Return", ", or"), ("word " * 200, "and so on")]  # fmt: skip
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    wanted = theirs.loglikelihood(requests, disable_tqdm=True)
    checkpoint = Checkpoint.open(learned.path)
    model, tokenizer = checkpoint.model(dtype=torch.float32), checkpoint.tokenizer()
    found = list(likelihoods(model, [continuation(tokenizer, *pair, model.config) for pair in pairs]))
    assert [-one.nll for one in found] == pytest.approx([one[0] for one in wanted], rel=1e-5)
    assert [one.greedy for one in found] == [one[1] for one in wanted]


def test_a_continuation_that_the_context_swallows_scores_its_last_token(learned):
    tokenizer = Tokenizer.open(learned.path)
    config = Checkpoint.open(learned.path).config
    whole = tokenizer.encode("return")
    swallowed = next(cut for cut in range(5, 0, -1) if len(tokenizer.encode("return"[:cut])) >= len(whole))
    asked = continuation(tokenizer, "return"[:swallowed], "return"[swallowed:], config)
    assert asked.scored == 1 and asked.ids[-1] == whole[-1]
    with pytest.raises(UserError, match="text to score is empty"):
        continuation(tokenizer, "a", "", config)
