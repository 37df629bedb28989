"""HarnessModel: a model of llmctl as lm-evaluation-harness asks one: likelihoods of texts, and texts after prompts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llmctl.core.benchmark.subject import Subject
from llmctl.core.decode.prompt import start_id, text_ids
from llmctl.core.metrics.likelihood import Asked
from llmctl.core.text.chat import Chat, chat_of
from llmctl.errors import Exit, UserError
from llmctl.spec.sample import Sampling

T = TypeVar("T")
Follow = Callable[[Iterator[T], int, str], Iterator[T]]  # answers, how many there will be, what they are
Request = tuple[Any, list[int], list[int]]  # what was asked (or None), ids of the context, ids to score

WRITTEN = 256  # tokens of a text at most, where the task says nothing; as lm-eval's own backend
# Generation options of tasks: theirs to ours.
SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "epsilon_cutoff": "epsilon_cutoff",
    "eta_cutoff": "eta_cutoff",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "min_new_tokens": "min_tokens",
}
FILTERS = (
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)  # that greedy decoding has no use for


def with_bar(answers: Iterator[T], total: int, label: str) -> Iterator[T]:
    """The answers, with the bar that lm-eval shows of its own backends."""
    yield from tqdm(answers, total=total, desc=label)


@register_model("llmctl")
class HarnessModel(TemplateLM):
    """A checkpoint of llmctl, or an adapter with its base, for lm-eval's evaluator.

    Texts become ids and are cut to the context as lm-eval's backend for transformers does it, so that the figures are
    the same: special tokens that are typed in a text are read as such. But max_gen_toks is what an encoder-decoder may
    write; theirs adds the length of the longest prompt of the batch to it.

    Args:
        pretrained: directory of the checkpoint, or a Subject that is loaded.
        device, dtype, threads: as of every command of ours.
        batch_size: texts that are written at a time; "auto": 16.
        max_batch_size: accepted and not used: memory is bounded by batch_tokens.
        batch_tokens: tokens that pass through the model at once where it reads.
        max_length: tokens of context; default: the model's.
        add_bos_token: put the beginning-of-text token before texts, or do not; default: as the tokenizer does.
        prefix_token_id: what an empty context is; default: the beginning-of-text token, or else the end-of-text one.
        chat_template: layout of conversations: chatml, llama2, llama3, zephyr, plain, or a file; default: its own.
        seed: of what is drawn, where a task wants that.
        follow: passes answers on while it shows how far they are.
    """

    def __init__(
        self,
        pretrained: str | Path | Subject,
        device: str | None = None,
        dtype: str = "auto",
        threads: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        batch_tokens: int = 8192,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        chat_template: str | None = None,
        seed: int = 0,
        follow: Follow | None = None,
    ):
        super().__init__()
        rows = int(batch_size) if str(batch_size or "auto").isdigit() else 16
        if isinstance(pretrained, Subject):
            self.subject = pretrained
        else:
            if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
                device = "auto"  # lm-eval's command line says cuda:0 where nobody says anything
            self.subject = Subject.open(pretrained, device, dtype, threads, batch_tokens, rows)
        config = self.subject.config
        if config.kind == "encoder" or not config.lm_head:
            raise UserError(
                f"{self.subject.path} does not score or write texts.", "Name a language model.", Exit.MISMATCH
            )
        self.backend = "causal" if config.kind == "decoder" else "seq2seq"
        reach = config.context if self.subject.context is None else self.subject.context
        self.max_length = min(int(max_length), reach) if max_length else reach
        self._device = torch.device(self.subject.place.device)
        self._add_bos, self._prefix, self._layout = add_bos_token, prefix_token_id, chat_template
        self._seed, self._follow = seed, follow or with_bar

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        eos = self.subject.tokenizer.eos
        return self.prefix_token_id if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context.

        Raises:
            UserError: there is none.
        """
        if self._prefix is not None:
            return self._prefix
        start = start_id(self.subject.tokenizer, self.subject.config)
        if start is None:
            raise UserError(
                f"{self.subject.path} has no token that begins a text.", "Name one: prefix_token_id=N", Exit.MISMATCH
            )
        return start

    @property
    def tokenizer_name(self) -> str:
        """Under which lm-eval keeps the requests that it made for this tokenizer."""
        return str(self.subject.path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, with what the tokenizer puts around one unless `add_special_tokens` is False."""
        tokenizer = self.subject.tokenizer
        ids = tokenizer.encode(string, special=True)
        added = self._add_bos if add_special_tokens is None else add_special_tokens
        if added is False:
            return ids
        if added and self.backend == "causal" and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
            return [tokenizer.bos, *ids]
        return text_ids(tokenizer, string, self.subject.config, special=True)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids."""
        return self.subject.tokenizer.decode(list(tokens), skip_special=skip_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each context and continuation the log probability (nats), and whether each token is likeliest."""
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        """Of each request the log probability (nats) of its ids after its context, and whether each is likeliest."""
        made = []
        found = self.subject.likelihoods(self._asked(context, ids) for _, context, ids in requests)
        for one, (asked, _, _) in zip(self._follow(found, len(requests), "scoring"), requests, strict=True):
            made.append((-one.nll, one.greedy))
            if asked is not None:  # of whole texts the sum is kept
                self.cache_hook.add_partial("loglikelihood", asked, made[-1])
        return made

    def _asked(self, context: list[int], ids: list[int]) -> Asked:
        """What the model reads of a request; a decoder loses the beginning of what is too long."""
        config = self.subject.config
        if len(ids) > self.max_length:
            raise UserError(
                f"{len(ids)} tokens are to be scored, but the model's context holds {self.max_length}.",
                "Leave this task out, or take a model with a longer context.",
                Exit.MISMATCH,
            )
        if self.backend == "seq2seq":
            return Asked([config.opens or 0, *ids], len(ids), context[-self.max_length :])
        return Asked([*context, *ids][-self.max_length - 1 :], len(ids))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each text the log probability (nats), in windows of the context, each token scored once."""
        owners: list[int] = []
        windows: list[Request] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            cut = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            for context, scored in map(make_disjoint_window, cut):
                owners.append(number)
                windows.append((None, context, scored))
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to the first text that ends it.

        Requests of like options are written side by side, in their order.

        Raises:
            UserError: an option that llmctl does not have, or no room for the answer in the context.
        """
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        texts = dict(self._follow(self._written(requests, alike.values()), len(requests), "writing"))
        return [texts[number] for number in range(len(requests))]

    def _written(self, requests: list[Instance], groups: Iterable[list[int]]) -> Iterator[tuple[int, str]]:
        """Each request's number with its text, group by group."""
        for numbers in groups:
            sampling, stops = options(requests[numbers[0]].args[1])
            prompts = (self._prompt(requests[number].args[0], sampling.max_tokens) for number in numbers)
            completions = self.subject.write(prompts, sampling, stops, self._seed)
            for number, completion in zip(numbers, completions, strict=True):
                text = self.tok_decode([one.id for one in completion.picked])  # of itself, as lm-eval reads it
                for stop in stops:
                    text = text.split(stop)[0]
                yield number, text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)

    def _prompt(self, text: str, room: int) -> list[int]:
        """The ids of a prompt, of which what leaves no room for the answer is cut off at its beginning."""
        room = room if self.backend == "causal" else 0
        if room >= self.max_length:
            raise UserError(
                f"An answer may have {room} tokens, but the model's context holds {self.max_length} with its prompt.",
                f"Give the task less, or for all of them: --gen-kwargs max_gen_toks={self.max_length // 2}",
                Exit.MISMATCH,
            )
        ids = self.tok_encode(text)[room - self.max_length :]
        return ids or [self.prefix_token_id]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; where no answer is to follow, it ends with what its last message says."""
        if add_generation_prompt:
            return self._rendered(chat_history, True)
        *before, last = chat_history
        marked = self._rendered([*before, {**last, "content": f"{last['content']}{END}"}], False)
        return marked[: marked.rindex(END)]

    def _rendered(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """A conversation as text; without its system message where the template has no place for one."""
        others = [one for one in messages if one["role"] != "system"]
        try:
            return self._chat.render(messages, add_generation_prompt)
        except UserError:
            if len(others) == len(messages):
                raise
        return self._chat.render(others, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that is applied, for the record."""
        return self._chat.source if chat_template else None

    @property
    def _chat(self) -> Chat:
        return chat_of(self.subject.tokenizer, self._layout)

    def get_model_info(self) -> dict[str, Any]:
        """What results say of the model."""
        return {
            "model_num_parameters": self.subject.parameters,
            "model_dtype": f"torch.{self.subject.dtype}",
            "model_path": str(self.subject.path),
        }


END = "\ue000"  # of the private use area: no text has it, and no template trims it away


def options(given: dict[str, Any]) -> tuple[Sampling, list[str]]:
    """How a task wants its texts written, and what ends them.

    Raises:
        UserError: an option that llmctl does not have.
    """
    asked: dict[str, Any] = dict(normalize_gen_kwargs(given, WRITTEN))
    stops = [stop for stop in asked.pop("until") if stop]
    most, drawn = asked.pop("max_gen_toks"), asked.pop("do_sample")
    if unknown := sorted(asked.keys() - SAMPLING.keys()):
        raise UserError(
            f"A task asks for {', '.join(unknown)}, which llmctl does not have here.",
            f"There are {', '.join(['do_sample', 'max_gen_toks', 'until', *SAMPLING])}.",
            Exit.MISMATCH,
        )
    chosen = {SAMPLING[name]: value for name, value in asked.items() if drawn or name not in FILTERS}
    chosen["temperature"] = float(asked.get("temperature", 1.0)) if drawn else 0.0
    return Sampling(**chosen, max_tokens=most, logprobs=0), stops
