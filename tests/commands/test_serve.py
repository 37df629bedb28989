"""serve, with OpenAI's own client over the loopback: what it answers, alone and under load."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import torch

from tests.commands.servers import CONTEXT, serving, write_model

PROMPTS = ["the list", "of things", "that thing lists", "é 日本", "a", "the thing that lists the things"]
NO_END = {"0": -100}  # the end of text is out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with serving(model, tmp_path_factory.mktemp("server"), "--batch-size", 8) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def written(model, prompt, count, **sampling):
    """What the core writes after a prompt, without a server."""
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.decode.generate import complete
    from llmctl.core.decode.prompt import prompt_ids, stop_ids
    from llmctl.core.decode.sample import stream_key
    from llmctl.spec.sample import Sampling

    checkpoint = Checkpoint.open(model)
    loaded, tokenizer = checkpoint.model(dtype=torch.float32), checkpoint.tokenizer()
    ids = prompt if isinstance(prompt, list) else prompt_ids(tokenizer, prompt, loaded.config)
    eos, seed = stop_ids(tokenizer, loaded.config, {}), sampling.pop("seed", 0)
    how = Sampling(max_tokens=count, **sampling)
    pieces = complete(loaded, tokenizer, [ids], how, [stream_key(seed, 0, 0)], eos)
    return next(piece.completion for piece in pieces if piece.completion)


def test_greedy_and_drawn_answers_are_those_of_generate(client, model):
    for prompt in PROMPTS[:3]:
        said = client.completions.create(model="model", prompt=prompt, max_tokens=12, temperature=0)
        wanted = written(model, prompt, 12)
        assert (said.choices[0].text, said.choices[0].finish_reason) == (wanted.text, wanted.finish)
        assert said.usage.completion_tokens == wanted.tokens
        cold = client.completions.create(model="model", prompt=prompt, max_tokens=12, temperature=1e-300)
        assert cold.choices[0].text == wanted.text
        drawn = client.completions.create(model="model", prompt=prompt, max_tokens=12, top_p=0.9, seed=7)
        assert drawn.choices[0].text == written(model, prompt, 12, temperature=1.0, top_p=0.9, seed=7).text


def test_many_at_once_get_what_each_would_get_alone(client):
    def ask(number):
        how = {"temperature": number % 3 / 2, "seed": number, "max_tokens": 5 + number % 17, "logit_bias": NO_END}
        if number % 4 == 0:
            how["stop"] = ["th", "é"]
        if number % 5 == 0:
            how |= {"top_p": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.3}
        prompt = PROMPTS[number % len(PROMPTS)]
        if number % 2:
            chunks = client.completions.create(model="model", prompt=prompt, stream=True, **how)
            return "".join(chunk.choices[0].text for chunk in chunks)
        return client.completions.create(model="model", prompt=prompt, **how).choices[0].text

    alone = [ask(number) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, range(32)))
    assert together == alone
    assert len(set(alone)) > 20


def test_a_chat_reads_what_the_template_lays_out_and_a_typed_special_token_is_text(client, model):
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.text.chat import chat_of

    talk = [{"role": "system", "content": "the list"}, {"role": "user", "content": "a <|turn|> b"}]
    said = client.chat.completions.create(model="model", messages=talk, max_tokens=10, temperature=0)
    ids = chat_of(Checkpoint.open(model).tokenizer()).ids(talk)
    wanted = written(model, ids, 10)
    assert said.choices[0].message.content == wanted.text
    assert said.usage.prompt_tokens == len(ids) and ids.count(1) == 3
    parts = [
        talk[0],
        {"role": "user", "content": [{"type": "text", "text": "a <|tu"}, {"type": "text", "text": "rn|> b"}]},
    ]
    assert (
        client.chat.completions.create(model="model", messages=parts, max_tokens=10, temperature=0)
        .choices[0]
        .message.content
        == wanted.text
    )


def test_a_stream_adds_up_to_the_whole_answer(client):
    talk = [{"role": "user", "content": "the list"}]
    how = {"model": "model", "messages": talk, "n": 3, "seed": 5, "max_completion_tokens": 20, "stop": ["t"]}
    whole = client.chat.completions.create(**how)
    texts, ends = {}, {}
    for chunk in client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            ends[choice.index] = choice.finish_reason
    assert usage == whole.usage
    assert [texts[at] for at in range(3)] == [choice.message.content for choice in whole.choices]
    assert [ends[at] for at in range(3)] == [choice.finish_reason for choice in whole.choices]


def test_an_answer_ends_before_a_stop_string_and_may_fill_the_context(client):
    free = client.completions.create(model="model", prompt="a", max_tokens=40, temperature=0, logit_bias=NO_END)
    text = free.choices[0].text
    cut = client.completions.create(
        model="model", prompt="a", max_tokens=40, temperature=0, logit_bias=NO_END, stop=text[5:8]
    )
    assert cut.choices[0].text == text[: text.index(text[5:8])] and cut.choices[0].finish_reason == "stop"
    talk = [{"role": "user", "content": "x" * (CONTEXT - 40)}]
    full = client.chat.completions.create(model="model", messages=talk, logit_bias=NO_END)
    assert full.usage.total_tokens == CONTEXT and full.choices[0].finish_reason == "length"


def test_log_probabilities_are_those_of_the_model(client, model):
    from llmctl.core.checkpoint.directory import Checkpoint

    checkpoint = Checkpoint.open(model)
    loaded, tokenizer = checkpoint.model(dtype=torch.float32), checkpoint.tokenizer()
    said = client.completions.create(
        model="model", prompt="the list", max_tokens=6, seed=3, logprobs=4, logit_bias=NO_END
    ).choices[0]
    ids = tokenizer.encode("the list")
    made = tokenizer.encode("".join(said.logprobs.tokens))
    with torch.inference_mode():
        logits = loaded.head(loaded(torch.tensor([[*ids, *made]])))[0, len(ids) - 1 : -1, : tokenizer.size]
        wanted = logits.log_softmax(-1)
    if len(made) == 6:  # the tokens read back as they were written
        assert np.allclose(said.logprobs.token_logprobs, wanted[range(6), made], atol=1e-4)
        for row, tops in zip(wanted, said.logprobs.top_logprobs, strict=True):
            assert np.allclose(sorted(tops.values()), row.topk(4).values.flip(0), atol=1e-4)
    chat = client.chat.completions.create(
        model="model", messages=[{"role": "user", "content": "é"}], max_tokens=8, logprobs=True, top_logprobs=2, seed=1
    ).choices[0]
    spelled = b"".join(bytes(one.bytes) for one in chat.logprobs.content)
    assert spelled.decode("utf-8", "replace") == chat.message.content
    assert all(len(one.top_logprobs) == 2 for one in chat.logprobs.content)


def test_a_prompt_is_scored_token_by_token_and_its_answer_after_it(client, model):
    """As lm-evaluation-harness asks: the prompt again, with log-probabilities, and hardly anything after it."""
    from llmctl.core.checkpoint.directory import Checkpoint

    checkpoint = Checkpoint.open(model)
    loaded, tokenizer = checkpoint.model(dtype=torch.float32), checkpoint.tokenizer()
    text = "the list of the things " * 70
    ids = tokenizer.encode(text)
    assert len(ids) > 300  # of more parts than one
    how = {"model": "model", "echo": True, "logprobs": 2, "temperature": 0, "logit_bias": NO_END}
    said = client.completions.create(prompt=[ids, ids[:1]], max_tokens=3, **how).choices
    with torch.inference_mode():
        wanted = loaded.head(loaded(torch.tensor([ids])))[0, :, : tokenizer.size].log_softmax(-1)
    told = said[0].logprobs
    assert len(told.tokens) == len(ids) + 3 and "".join(told.tokens).startswith(text)
    assert (told.token_logprobs[0], told.top_logprobs[0], told.text_offset[:2]) == (
        None,
        None,
        [0, len(told.tokens[0])],
    )
    assert np.allclose(told.token_logprobs[1 : len(ids)], wanted[range(len(ids) - 1), ids[1:]], atol=1e-4)
    assert np.isclose(max(told.top_logprobs[5].values()), wanted[4].max(), atol=1e-4)
    assert np.isclose(told.token_logprobs[len(ids)], wanted[-1, 1:].max(), atol=1e-4)
    assert len(said[1].logprobs.tokens) == 4
    odd = client.completions.create(prompt=[ids[0], tokenizer.size, ids[1]], max_tokens=0, **how)
    assert odd.choices[0].logprobs.token_logprobs[1] < -9000  # the model has the id, the tokenizer no token for it
    alone = client.completions.create(prompt=text, max_tokens=0, **how)
    assert alone.choices[0].logprobs.token_logprobs == told.token_logprobs[: len(ids)]
    assert (alone.choices[0].text, alone.usage.completion_tokens) == (text, 0)
    chunks = list(client.completions.create(prompt=text, max_tokens=3, stream=True, **how))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for part in parts for token in part.tokens] == told.tokens
    assert [at for part in parts for at in part.text_offset] == told.text_offset


def test_best_of_tells_the_likeliest(client):
    how = {"model": "model", "prompt": "the", "max_tokens": 5, "seed": 11, "logprobs": 0, "logit_bias": NO_END}
    every = client.completions.create(**how, n=6).choices
    means = sorted((np.mean(choice.logprobs.token_logprobs) for choice in every), reverse=True)
    best = client.completions.create(**how, n=2, best_of=6)
    assert np.allclose([np.mean(choice.logprobs.token_logprobs) for choice in best.choices], means[:2])
    assert best.usage.completion_tokens == 30


def test_several_prompts_of_text_or_ids_are_answered_in_their_order(client):
    how = {"model": "model", "max_tokens": 6, "temperature": 0, "n": 2}
    said = client.completions.create(prompt=PROMPTS, **how)
    assert [choice.index for choice in said.choices] == list(range(12))
    single = [client.completions.create(prompt=prompt, **how).choices[1].text for prompt in PROMPTS]
    assert [choice.text for choice in said.choices[1::2]] == single
    ids = client.completions.create(prompt=[[45, 46], [47]], **how).choices
    assert ids[0].text == client.completions.create(prompt=[45, 46], **how).choices[0].text


def test_an_answer_keeps_to_a_json_schema_or_a_pattern(client):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "kind": {"enum": ["cat", "dog"]}},
        "required": ["age", "kind"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "pet", "strict": True, "schema": schema}}
    talk = [{"role": "user", "content": "a pet"}]
    bias = {str(14 + digit): -8 for digit in range(2, 12)}  # short numbers
    with ThreadPoolExecutor(4) as pool:

        def ask(seed):
            return client.chat.completions.create(
                model="model", messages=talk, response_format=form, max_tokens=400, seed=seed, logit_bias=bias
            ).choices[0]

        for choice in pool.map(ask, range(4)):
            assert choice.finish_reason == "stop"
            made = json.loads(choice.message.content)
            assert type(made["age"]) is int and made["kind"] in ("cat", "dog") and len(made) == 2
    regex = {"type": "regex", "regex": "(yes|no){2}"}
    said = client.completions.create(model="model", prompt="x", extra_body={"response_format": regex}, seed=1)
    assert said.choices[0].text in ("yesyes", "yesno", "noyes", "nono")


def test_a_function_that_must_be_called_is_called_with_its_arguments(client):
    def tool(name, *fields):
        kinds = {field: {"enum": ["a", "b"]} for field in fields}
        schema = {"type": "object", "properties": kinds, "required": list(fields), "additionalProperties": False}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    tools = [tool("look", "where"), tool("go", "from", "to")]
    how = {"model": "model", "messages": [{"role": "user", "content": "go"}], "tools": tools, "max_tokens": 200}
    for choice, names in (({"type": "function", "function": {"name": "go"}}, ["go"]), ("required", ["look", "go"])):
        said = client.chat.completions.create(**how, tool_choice=choice, seed=2).choices[0]
        (call,) = said.message.tool_calls
        assert said.finish_reason == "tool_calls" and said.message.content is None and call.function.name in names
        assert set(json.loads(call.function.arguments).values()) <= {"a", "b"}
        name = arguments = ""
        for chunk in client.chat.completions.create(**how, tool_choice=choice, seed=2, stream=True):
            for part in chunk.choices[0].delta.tool_calls or ():
                name += part.function.name or ""
                arguments += part.function.arguments or ""
            end = chunk.choices[0].finish_reason
        assert (name, arguments, end) == (call.function.name, call.function.arguments, "tool_calls")
    free = client.chat.completions.create(**how, seed=3)  # it may call, and does not know how
    assert free.choices[0].message.tool_calls is None
    told = {**how, "messages": [*how["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]}
    told["messages"].append({"role": "tool", "tool_call_id": call.id, "content": "done"})
    assert client.chat.completions.create(**told).usage.prompt_tokens > free.usage.prompt_tokens


def test_embeddings_are_those_of_embed_at_length_1(client, model, tmp_path):
    from llmctl.core.checkpoint.directory import Checkpoint

    checkpoint = Checkpoint.open(model)
    loaded, tokenizer = checkpoint.model(dtype=torch.float32), checkpoint.tokenizer()
    texts = [*PROMPTS, *PROMPTS[:2] * 20]
    said = client.embeddings.create(model="model", input=texts)  # base64, as the client asks
    assert [one.index for one in said.data] == list(range(len(texts)))
    plain = client.embeddings.create(
        model="model", input=[tokenizer.encode(text) for text in texts], encoding_format="float"
    )
    for text, one, other in zip(texts, said.data, plain.data, strict=True):
        with torch.inference_mode():
            hidden = loaded(torch.tensor([tokenizer.encode(text)]))[0, -1]
        assert np.allclose(one.embedding, hidden / hidden.norm(), atol=1e-5)
        assert np.allclose(one.embedding, other.embedding)
    assert said.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in texts)


def test_models_are_listed_and_another_model_is_not_found(client):
    assert [one.id for one in client.models.list()] == ["model"]
    assert client.models.retrieve("model").max_model_len == CONTEXT
    for ask in (
        lambda: client.models.retrieve("gpt-4"),
        lambda: client.completions.create(model="gpt-4", prompt="a"),
        lambda: client.embeddings.create(model="gpt-4", input="a"),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            ask()
        assert error.value.code == "model_not_found"


CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
TOOLS = [{"type": "function", "function": {"name": one, "parameters": {"$defs": ["no object"]}}} for one in "ab"]
WRONG = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "a"}, "messages"),
    ({"messages": [{"content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    ({**CHAT, "temperature": -1}, "temperature"),
    ({**CHAT, "temperature": "warm"}, "temperature"),
    ({**CHAT, "top_p": 1.5}, "top_p"),
    ({**CHAT, "max_tokens": 0}, "max_tokens"),
    ({**CHAT, "max_tokens": CONTEXT}, "messages"),
    ({**CHAT, "n": 0}, "n"),
    ({**CHAT, "n": True}, "n"),
    ({**CHAT, "stop": [""]}, "stop"),
    ({**CHAT, "stop": ["a"] * 17}, "stop"),
    ({**CHAT, "logit_bias": {"a": 1}}, "logit_bias"),
    ({**CHAT, "top_logprobs": 2}, "top_logprobs"),
    ({**CHAT, "seed": 2**70}, "seed"),
    ({**CHAT, "stream": "yes"}, "stream"),
    ({**CHAT, "stream_options": {"include_usage": True}}, "stream_options"),
    ({**CHAT, "response_format": {"type": "xml"}}, "response_format.type"),
    ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({**CHAT, "response_format": {"type": "regex", "regex": "("}}, "response_format"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools[0].function"),
    ({**CHAT, "tool_choice": "required"}, "tool_choice"),
    ({**CHAT, "tool_choice": "required", "tools": TOOLS}, "tools"),
    ({**CHAT, "temprature": 1}, "temprature"),
    ({**CHAT, "model": 3}, "model"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[f"{at}-{param}" for at, (_, param) in enumerate(WRONG)])
def test_a_wrong_field_is_named(server, body, param):
    answer = server.post("/v1/chat/completions", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert set(error) == {"message", "type", "param", "code"}


def test_what_is_no_request_gets_the_right_status(server):
    import httpx

    url, kind = f"{server.url}/v1/chat/completions", {"Content-Type": "application/json"}
    deep = b"[" * 100_000
    schema = b'{"a":' * 900 + b"1" + b"}" * 900  # deep for Python, though not for what reads JSON
    nested = b'{"messages": [{"role": "user", "content": "a", "%b": %b}]%b}'
    form = b', "response_format": {"type": "json_schema", "json_schema": {"schema": %b}}' % schema
    for content, headers, status in [
        (b"{", kind, 400),
        (b"", kind, 400),
        (b"\xff\xfe", kind, 400),
        (deep, kind, 400),
        (nested % (b"x", schema, b""), kind, 400),
        (nested % (b"x", b"1", form), kind, 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', kind, 400),
        (b"[]", kind, 400),
        (b"{}", {"Origin": "https://evil.example"}, 403),
        (b"{}", {"Origin": "null"}, 403),
        (b"{}", {"Origin": "http://["}, 403),
        (b"{}", {"Origin": "http://localhost:3000"}, 400),
        (b" " * 4_000_001, kind, 413),
    ]:
        answer = httpx.post(url, content=content, headers=headers)
        assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})
    parts = (b" " * 100_000 for _ in range(50))  # no Content-Length says it beforehand
    assert httpx.post(url, content=parts, headers=kind).status_code == 413
    assert httpx.get(url).status_code == 405 and httpx.get(url).headers["allow"] == "POST"
    assert httpx.get(f"{server.url}/v2").json()["error"]["message"] == "There is no /v2."
    assert httpx.get(f"{server.url}/health", headers={"Host": "evil.example"}).status_code == 421
    for headers in ({}, {"Host": ""}):  # as probes of HTTP 1.0 do
        assert httpx.get(f"{server.url}/health", headers=headers).json() == {"status": "ok"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d says
    plain = httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "a"}', headers=form)
    assert plain.status_code == 200
    assert server.metric("llmctl_completions_running") == 0


def test_too_long_a_prompt_is_told_by_its_code(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="model", prompt="x" * CONTEXT, max_tokens=1)
    assert error.value.code == "context_length_exceeded" and str(CONTEXT) in error.value.message


def test_the_client_that_goes_away_frees_its_place(server, client):
    before, written = server.metric("llmctl_requests_aborted_total"), server.metric("llmctl_generated_tokens_total")
    for _ in range(20):  # more than there are places
        stream = client.completions.create(
            model="model", prompt="a", max_tokens=4000, stream=True, logit_bias=NO_END, n=2
        )
        next(iter(stream))
        stream.close()
    with pytest.raises(openai.APITimeoutError):  # not a stream
        client.with_options(timeout=0.3).completions.create(
            model="model", prompt="a", max_tokens=4000, logit_bias=NO_END
        )
    patient = time.monotonic() + 20
    while server.metric("llmctl_completions_running") and time.monotonic() < patient:
        time.sleep(0.05)
    assert server.metric("llmctl_completions_running") == 0
    assert server.metric("llmctl_requests_aborted_total") == before + 21
    assert server.metric("llmctl_generated_tokens_total") - written < 21 * 4000


def test_one_that_reads_slowly_delays_nobody(server, client):
    import socket

    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "a", "max_tokens": 3000, "stream": True, "logprobs": 5, "logit_bias": NO_END, "n": 2})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(f"{head}\r\nConnection: close\r\n\r\n{body}".encode())
        for _ in range(3):  # nothing of the other's answer is read meanwhile
            said = client.completions.create(model="model", prompt="a", max_tokens=50, logit_bias=NO_END)
            assert said.usage.completion_tokens == 50
        time.sleep(1)
        received = b""
        while part := slow.recv(1 << 20):
            received += part
    assert received.rstrip().endswith(b"0") and b"data: [DONE]" in received
    chunks = [json.loads(line[6:]) for line in received.split(b"\n") if line.startswith(b"data: {")]
    assert sum(chunk["choices"][0]["finish_reason"] == "length" for chunk in chunks) == 2
    assert (
        sum(len(chunk["choices"][0]["logprobs"]["tokens"]) for chunk in chunks if chunk["choices"][0]["logprobs"])
        == 6000
    )


def test_many_threads_of_one_client_with_streams_that_end_early(client):
    """Streams that are dropped, and whole answers, mixed: those that are read are whole."""
    wanted = client.completions.create(model="model", prompt="the", max_tokens=30, temperature=0, logit_bias=NO_END)
    failed = []

    def ask(number):
        stream = client.completions.create(
            model="model", prompt="the", max_tokens=30, temperature=0, stream=True, logit_bias=NO_END
        )
        text = ""
        for count, chunk in enumerate(stream):
            text += chunk.choices[0].text
            if number % 3 == 0 and count > 3:
                stream.close()
                return
        if text != wanted.choices[0].text:
            failed.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed and not any(thread.is_alive() for thread in threads)
