"""serve at its limits: full queues, slow and silent clients, keys, its end, and what is wrong with its options."""

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.commands.servers import serving, write_model

NO_END = {"0": -100}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def narrow(model, tmp_path_factory):
    """A server for one completion at a time, with one that waits, short patience and a key."""
    place = tmp_path_factory.mktemp("narrow")
    (place / "keys").write_text("first\n\nsecond\n")
    options = (
        "--batch-size",
        1,
        "--queue",
        1,
        "--stall",
        0.5,
        "--api-key-file",
        "keys",
        "--name",
        "small",
        "--name",
        "a/b",
    )
    with serving(model, place, *options, env={"LLMCTL_API_KEY": "third"}) as running:
        yield running


def busy(server, count):
    """Waits until so many completions are made or wait."""
    bearer = {"headers": {"Authorization": "Bearer first"}}
    for _ in range(400):
        load = [server.metric(f"llmctl_completions_{state}", **bearer) for state in ("running", "waiting")]
        if sum(load) == count:
            return
        time.sleep(0.01)
    raise AssertionError(load)


def stream(client, tokens, model="model"):
    how = {"model": model, "prompt": "a", "max_tokens": tokens, "stream": True, "logit_bias": NO_END}
    return client.completions.create(**how)


def request(url, body, head=""):
    """A request as text, and where it goes."""
    host, port = url.removeprefix("http://").split(":")
    lines = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{head}"
    return (host, int(port)), f"{lines}Content-Length: {len(body)}\r\n\r\n".encode()


def test_a_full_server_says_when_to_come_back_and_openais_client_does(narrow):
    client = narrow.client(api_key="first")
    first, second = stream(client, 1500, "small"), stream(client, 100, "small")
    busy(narrow, 2)
    with pytest.raises(openai.RateLimitError) as error:
        client.completions.create(model="small", prompt="a", max_tokens=2)
    assert error.value.code == "rate_limit_exceeded"
    assert 1 <= int(error.value.response.headers["retry-after"]) <= 60
    patient = client.with_options(max_retries=6)
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(patient.completions.create, model="small", prompt="a", max_tokens=2, logit_bias=NO_END)
        for one, tokens in ((first, 1500), (second, 100)):
            assert sum(bool(chunk.choices[0].text) or 1 for chunk in one) >= tokens / 4
        assert third.result().usage.completion_tokens == 2
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="small", prompt="a", max_tokens=2, n=3)  # it could never be taken


def test_only_those_with_a_key_come_in(narrow):
    for key in ("first", "second", "third"):
        assert [one.id for one in narrow.client(api_key=key).models.list()] == ["small", "a/b"]
    assert narrow.client(api_key="first").models.retrieve("a/b").id == "a/b"
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer fourth"},
        {"Authorization": "Basic first"},
    ):
        for path in ("/v1/models", "/metrics", "/nowhere"):
            answer = httpx.get(f"{narrow.url}{path}", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{narrow.url}/health").status_code == 200
    assert "first" not in narrow.log.read_text()


def test_one_that_sends_or_takes_nothing_is_given_up(narrow):
    head = "Authorization: Bearer first\r\n"
    where, text = request(narrow.url, "x" * 50, head)
    with socket.create_connection(where) as silent:
        silent.sendall(text + b"{")
        assert silent.recv(1 << 16).startswith(b"HTTP/1.1 408")
    body = json.dumps(
        {"prompt": "a", "max_tokens": 4000, "stream": True, "logprobs": 20, "logit_bias": NO_END}
    ).encode()
    where, text = request(narrow.url, body, head)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(where)
        deaf.sendall(text + body)
        busy(narrow, 1)
        busy(narrow, 0)  # long before it could have been finished
    said = narrow.client(api_key="first").completions.create(model="small", prompt="a", max_tokens=3, logit_bias=NO_END)
    assert said.usage.completion_tokens == 3


def test_a_signal_ends_it_when_what_was_begun_is_finished(model, tmp_path):
    with serving(model, tmp_path) as running:
        chunks = iter(stream(running.client(), 1000))
        next(chunks)
        running.process.send_signal(signal.SIGTERM)
        left = list(chunks)
        assert left[-1].choices[0].finish_reason == "length" and len(left) > 1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/health")
        assert running.process.wait(10) == 0
        assert "finishing 1 completions" in running.log.read_text() and "Traceback" not in running.log.read_text()


@pytest.mark.parametrize("again", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_second_signal_or_the_end_of_grace_cuts_off_what_is_left(model, tmp_path, again):
    with serving(model, tmp_path, "--grace", 30 if again else 0.2) as running:
        chunks = iter(stream(running.client(), 4000))
        next(chunks)
        running.process.send_signal(signal.SIGINT)
        if again:
            time.sleep(0.3)
            running.process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(chunks)
        assert running.process.wait(10) == 0
        assert "Traceback" not in running.log.read_text()


def test_a_port_that_is_taken_is_said(narrow, model, call):
    port = narrow.url.rpartition(":")[2]
    done = call("serve", model, "--port", port)
    assert done.code == 1 and port in done.err and "--port" in done.err.splitlines()[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port=70000"], "--port is 70000"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--name", ""], "--name"),
        (["--stall", "0"], "--stall"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--api-key-file", "nowhere"], "--api-key-file nowhere"),
        (["--kv-dtype", "int3"], "--kv-dtype"),
        (["--chat-template", "nowhere"], "--chat-template nowhere"),
    ],
)
def test_a_wrong_option_is_two_lines(model, call, options, told):
    done = call("serve", model, "--port", 0, *options)
    assert done.code in (1, 2) and done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 2 and told in lines[0] and lines[1].startswith("hint:  ")


def test_an_encoder_serves_embeddings_alone(tmp_path):
    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.core.text.train import train_tokenizer
    from tests.core.variants import VARIANTS

    config = VARIANTS["roberta"]
    path = tmp_path / "model"
    path.mkdir()
    save_checkpoint(path, initialise(Transformer(config), 0), config)
    train_tokenizer(["a b c"] * 9, "word", 20).save(path)
    with serving(path, tmp_path) as running:
        client = running.client()
        assert len(client.embeddings.create(model="model", input="a b").data[0].embedding) == config.width
        for ask in (
            lambda: client.completions.create(model="model", prompt="a"),
            lambda: client.chat.completions.create(model="model", messages=[{"role": "user", "content": "a"}]),
        ):
            with pytest.raises(openai.NotFoundError, match="writes no text"):
                ask()
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="model", input="a " * 100)
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="model", input="a", dimensions=3)
