"""HarnessModel: every likelihood, text and figure is that of lm-eval's own backend for transformers."""

import datasets
import pytest
from lm_eval.api.registry import get_model
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from llmctl.core.harness.model import HarnessModel, options
from llmctl.errors import UserError
from tests.commands.readers import drawn, transformers

PIECES = [
    "<pad>",
    "</s>",
    "<unk>",
    "<s>",
    "▁",
    *(f"▁{one}" for one in ("the", "cat", "sat", "on", "mat")),
    *"abcdefg\n:",
]
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
ROWS = [
    {"q": "the cat", "choices": ["sat", "sat on the mat", "a"], "gold": 1, "text": "the cat sat on the mat " * 7},
    {"q": "on the mat ", "choices": ["cat", "bed", "on a"], "gold": 0, "text": "a bed"},
    {"q": "", "choices": ["the cat", "mat", "c a"], "gold": 2, "text": "the mat: on\nthe cat"},
    {"q": "cat " * 30, "choices": ["the", "sat", "fed the cat on a bed"], "gold": 0, "text": "abc " * 40},
    {"q": "the </s> cat", "choices": ["sat </s>", "mat", "on"], "gold": 1, "text": "<s>the cat </s>"},
]
SHARED = {"custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(ROWS)}, "test_split": "test"}
CHOICE = SHARED | {
    "task": "choice", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "gold",
    "doc_to_choice": "choices", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}  # fmt: skip
WRITTEN = SHARED | {
    "task": "written", "output_type": "generate_until", "doc_to_text": "{{q}} on", "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["mat", "\n"], "max_gen_toks": 12}, "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip
ROLLING = SHARED | {
    "task": "rolling", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}  # fmt: skip
SHOTS = {"fewshot_split": "test", "num_fewshot": 2, "fewshot_delimiter": "\n"}


def words_of(processor):
    backend = Tokenizer(models.Unigram([(piece, -float(len(PIECES) - n)) for n, piece in enumerate(PIECES)], unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    if processor:
        backend.post_processor = processors.TemplateProcessing(
            single=processor, special_tokens=[("<s>", 3), ("</s>", 1)]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named, chat_template=CHAT)


def saved(path, theirs, words):
    theirs.generation_config.eos_token_id = 1
    theirs.save_pretrained(path)
    words.save_pretrained(path)
    return path


def llama(path, processor):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=len(PIECES), **shape, max_position_embeddings=48, bos_token_id=3, eos_token_id=1, pad_token_id=0
    )
    return saved(path, drawn(transformers.LlamaForCausalLM(config)), words_of(processor))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A Llama whose tokenizer puts <s> before a text; a context of 48."""
    return llama(tmp_path_factory.mktemp("decoder"), "<s> $A")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """One whose tokenizer puts nothing there."""
    return llama(tmp_path_factory.mktemp("bare"), None)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """An encoder-decoder, whose encoder's texts end in </s>."""
    shape = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    config = transformers.T5Config(vocab_size=len(PIECES), **shape, decoder_start_token_id=0, n_positions=48)
    return saved(
        tmp_path_factory.mktemp("t5"), drawn(transformers.T5ForConditionalGeneration(config)), words_of("$A </s>")
    )


def both(path, *tasks, **how):
    """What lm-eval finds with our model, and with its own backend."""
    found = []
    for model in (
        HarnessModel(path, dtype="fp32", threads=1),
        HFLM(str(path), device="cpu", dtype="float32", batch_size=3),
    ):
        loaded = TaskManager(include_defaults=False).load([dict(one) for one in tasks])
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=1234)
        found.append(evaluate(model, loaded, bootstrap_iters=0, **how))
    return found


def assert_same(found, wanted, begins=False):
    """Also the texts, or where theirs may go on, their beginnings."""
    for task, samples in wanted["samples"].items():
        for mine, theirs in zip(found["samples"][task], samples, strict=True):
            assert mine["arguments"] == theirs["arguments"]
            for (one,), (other,) in zip(mine["resps"], theirs["resps"], strict=True):
                if isinstance(other, tuple):
                    assert (one[0], one[1]) == (pytest.approx(other[0], abs=2e-4), other[1])  # fp32 of two programs
                elif isinstance(other, str):
                    assert one == other or (begins and other.startswith(one))
                else:
                    assert one == pytest.approx(other, abs=2e-3)
        for name, value in wanted["results"][task].items():
            assert found["results"][task][name] == (pytest.approx(value, rel=1e-4) if type(value) is float else value)


@pytest.mark.parametrize("kind", ["decoder", "bare", "t5"])
def test_choices_texts_and_whole_documents_are_those_of_its_own_backend(kind, request):
    path = request.getfixturevalue(kind)
    found, wanted = both(path, CHOICE, WRITTEN, ROLLING)
    assert_same(found, wanted, begins=kind == "t5")  # theirs adds the tokens of the batch's prompts to the limit
    assert len({str(one["resps"]) for one in found["samples"]["written"]}) > 2


def test_examples_before_prompts_are_the_same(decoder):
    assert_same(*both(decoder, CHOICE | SHOTS, WRITTEN | SHOTS))


def test_conversations_are_the_same(decoder):
    how = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "a cat"}
    found, wanted = both(decoder, CHOICE | SHOTS, WRITTEN | {"gen_prefix": "the mat"}, **how)
    assert_same(found, wanted)
    assert found["samples"]["written"][0]["arguments"][0][0].endswith("<s>assistant\nthe mat")


def test_it_is_found_by_its_name_with_the_arguments_of_the_command_line(decoder):
    kind = get_model("llmctl")
    made = kind.create_from_arg_string(
        f"pretrained={decoder},max_length=16", {"batch_size": "auto", "device": "cuda:0"}
    )
    assert (made.max_length, made.subject.rows, str(made.device)) == (16, 16, "cpu")
    assert made.get_model_info()["model_dtype"] == "torch.float32"


def test_generation_options_are_ours_or_refused():
    sampling, stops = options(
        {"until": ["\n", ""], "do_sample": True, "temperature": 0.5, "top_p": 0.9, "max_tokens": 7}
    )
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, stops) == (0.5, 0.9, 7, ["\n"])
    sampling, _ = options({"until": ["\n"], "do_sample": False, "top_p": 0.9, "temperature": 0.7})
    assert sampling.greedy and sampling.top_p == 1.0 and sampling.max_tokens == 256
    with pytest.raises(UserError, match="num_beams"):
        options({"num_beams": 4})


def test_what_leaves_no_room_for_an_answer_is_refused(decoder):
    with pytest.raises(UserError, match="context holds 48"):
        both(decoder, WRITTEN | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 64}})
