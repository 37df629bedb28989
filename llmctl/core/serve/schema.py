"""Schema: the requests of OpenAI's interface as typed, checked data; of the model, nothing is known here."""

from dataclasses import dataclass, field
from typing import Any

from llmctl.core.serve.fields import Fields
from llmctl.core.serve.form import Form, form_of, messages_of, tools_of
from llmctl.core.serve.refusal import Refusal
from llmctl.spec.sample import Sampling

Ids = tuple[int, ...]

MOST = 1 << 30  # of what is counted and has no natural end
TOP = 20  # alternatives of a token whose log-probabilities are told, at most
STOPS, STOP = 16, 200  # stop strings, and characters of one, at most
BIASES = 1024  # entries of logit_bias, at most
TINY = 1e-9  # top_p of 0 means the likeliest token, and so does a temperature that is less
# Fields that other servers act on and that change nothing here. A field that is not known at all is refused, since
# it may be mistyped.
IDLE = (
    "user", "store", "metadata", "service_tier", "parallel_tool_calls", "modalities", "prediction", "verbosity",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "reasoning_effort",
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A request for text.

    Attributes:
        model: which one, or None.
        prompts: of completions; texts, or ids.
        messages: of a chat; () for completions.
        tools: functions that a chat's template is told of.
        sampling: how tokens are chosen; how many completions there are, and how long, is said here.
        samples: completions that are made of each prompt.
        n: how many of them are told, the likeliest ones.
        top: alternatives of each token whose log-probabilities are told; None: not even its own.
        bias: (id, what is added to its score).
        limit: most new tokens; None: as many as fit.
        stops: strings that end an answer.
        stop_ids: tokens that do.
        seed: of the random choices; None: any.
        stream: whether the answer comes in parts.
        usage: whether a stream ends with the numbers of tokens.
        echo: whether an answer begins with its prompt.
        form: what the text is held to.
    """

    model: str | None
    sampling: Sampling
    samples: int
    n: int
    limit: int | None
    top: int | None = None
    bias: tuple[tuple[int, float], ...] = ()
    prompts: tuple[str | Ids, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    stops: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    seed: int | None = None
    stream: bool = False
    usage: bool = False
    echo: bool = False
    form: Form = field(default_factory=Form)

    @property
    def chat(self) -> bool:
        """Whether it is a conversation."""
        return bool(self.messages)


@dataclass(frozen=True)
class Vectors:
    """A request for embeddings.

    Attributes:
        model: which one, or None.
        inputs: texts, or ids.
        base64: whether vectors are sent as base64 of float32, little end first.
        dimensions: of a vector, if they are named.
    """

    model: str | None
    inputs: tuple[str | Ids, ...]
    base64: bool = False
    dimensions: int | None = None


def chat(body: object) -> Ask:
    """The request of POST /v1/chat/completions.

    Raises:
        Refusal: a field is wrong, unknown, or asks for what is not done here.
    """
    fields = Fields(body)
    messages, tools, form = messages_of(fields), tools_of(fields), form_of(fields)
    limit = fields.whole("max_tokens", 1, MOST)
    newer = fields.whole("max_completion_tokens", 1, MOST)
    told, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, TOP)
    if top is not None and not told:
        raise Refusal("top_logprobs is given, but logprobs is not true.", param="top_logprobs")
    shared = _shared(fields, (top or 0) if told else None)
    fields.end(IDLE)
    limit = limit if newer is None else newer
    return Ask(**shared, messages=messages, tools=tools, limit=limit, form=form)


def completion(body: object) -> Ask:
    """The request of POST /v1/completions.

    Raises:
        Refusal: a field is wrong, unknown, or asks for what is not done here.
    """
    fields = Fields(body)
    prompts = inputs(fields, "prompt")
    limit = fields.whole("max_tokens", 0, MOST)
    best = fields.whole("best_of", 1, MOST)
    top = fields.whole("logprobs", 0, TOP)
    if fields.text("suffix"):
        raise Refusal("suffix is given, but text is only written after a prompt here.", param="suffix")
    shared = _shared(fields, top, best)
    if best is not None and shared["stream"] and best > shared["n"]:
        raise Refusal("best_of is chosen from whole completions, so it cannot be streamed.", param="best_of")
    shared["echo"] = fields.flag("echo")
    form = form_of(fields)
    fields.end(IDLE)
    return Ask(**shared, prompts=prompts, form=form, limit=16 if limit is None else limit)  # 16: OpenAI's


def embeddings(body: object) -> Vectors:
    """The request of POST /v1/embeddings.

    Raises:
        Refusal: a field is wrong or unknown.
    """
    fields = Fields(body)
    made = Vectors(
        fields.text("model"),
        inputs(fields, "input"),
        fields.choice("encoding_format", ("float", "base64")) == "base64",
        fields.whole("dimensions", 1, MOST),
    )
    fields.end(IDLE)
    return made


def inputs(fields: Fields, name: str) -> tuple[str | Ids, ...]:
    """One text or several, each as it is or as ids: a string, an array of them, of numbers, or of arrays of numbers."""
    value = fields.need(name)
    if isinstance(value, str):
        return (value,)
    wanted = "a string, an array of strings, an array of ids, or an array of these"
    if not isinstance(value, list) or not value:
        raise fields.wrong(name, wanted)
    if all(type(one) is int for one in value):
        return (_ids(fields, name, value),)
    if all(isinstance(one, str) for one in value):
        return tuple(value)
    if all(isinstance(one, list) and one and all(type(id) is int for id in one) for one in value):
        return tuple(_ids(fields, name, one) for one in value)
    raise fields.wrong(name, wanted)


def _ids(fields: Fields, name: str, value: list[int]) -> Ids:
    if min(value) < 0:
        raise fields.wrong(name, "ids of 0 or more")
    return tuple(value)


def _shared(fields: Fields, top: int | None, best: int | None = None) -> dict[str, Any]:
    """What both kinds of requests for text have.

    Args:
        top: alternatives of each token whose log-probabilities are told; None: not even its own.
        best: how many completions of each prompt are made, of which the likeliest are told; None: as many.
    """
    n = fields.whole("n", 1, 128) or 1
    if best is not None and best < n:
        raise Refusal(f"best_of is {best}; wanted {n} or more, as n is.", param="best_of")
    options = fields.inner("stream_options")
    stream, usage = fields.flag("stream"), False
    if options is not None:
        if not stream:
            raise Refusal("stream_options is given, but stream is not true.", param="stream_options")
        usage = options.flag("include_usage")
        options.end(("include_obfuscation",))
    seed = fields.whole("seed", -(2**63), 2**63 - 1)
    shared = {"model": fields.text("model"), "n": n, "stream": stream, "usage": usage, "seed": seed}
    made = {"samples": best or n, "top": top, "bias": _bias(fields), "sampling": _sampling(fields, best, n, top)}
    return {**shared, **_stops(fields), **made}


def _stops(fields: Fields) -> dict[str, Any]:
    stop = fields.raw("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    good = isinstance(stops, list) and len(stops) <= STOPS
    if not good or not all(isinstance(one, str) and 0 < len(one) <= STOP for one in stops):
        raise fields.wrong("stop", f"a string of 1 to {STOP} characters, or an array of up to {STOPS} of them")
    ids = fields.raw("stop_token_ids") or []
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise fields.wrong("stop_token_ids", "an array of ids")
    return {"stops": tuple(stops), "stop_ids": frozenset(ids)}


def _sampling(fields: Fields, best: int | None, n: int, top: int | None) -> Sampling:
    """How tokens are chosen: OpenAI's fields, and those of llmctl generate under the same names."""
    heat, top_p = fields.number("temperature", 0, 100), fields.number("top_p", 0, 1)
    told = 0 if top is None and (best or n) > n else top  # the likeliest of several are to be found
    given = {
        "top_p": None if top_p is None else max(TINY, top_p),
        "top_k": fields.whole("top_k", 0, MOST),
        "min_p": fields.number("min_p", 0, 1),
        "typical_p": fields.number("typical_p", TINY, 1),
        "repetition_penalty": fields.number("repetition_penalty", TINY, 100),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "no_repeat_ngram": fields.whole("no_repeat_ngram", 0, MOST),
        "min_tokens": fields.whole("min_tokens", 0, MOST),
    }
    heat = 1.0 if heat is None else float(heat) if heat >= TINY else 0.0
    return Sampling(temperature=heat, logprobs=told, **{name: one for name, one in given.items() if one is not None})


def _bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    """(id, what is added to its score) of `logit_bias`, whose ids are strings, for JSON has no other keys."""
    found = fields.raw("logit_bias") or {}
    wanted = "an object of numbers from -100 to 100 by token id"
    if not isinstance(found, dict) or len(found) > BIASES:
        raise fields.wrong("logit_bias", wanted)
    for id, value in found.items():
        if not (id.isascii() and id.isdigit()) or type(value) not in (int, float) or not -100 <= value <= 100:
            raise fields.wrong("logit_bias", wanted)
    return tuple(sorted((int(id), float(value)) for id, value in found.items()))
