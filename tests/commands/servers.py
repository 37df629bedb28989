"""A small model that can be asked for long texts, and `llmctl serve` as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import tokenizers
from openai import OpenAI
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.conftest import environment

CONTEXT = 4096
TEMPLATE = """{%- for message in messages %}
{{- '<|turn|>' + message['role'] + ':' + message['content'] + eos_token }}
{%- endfor %}
{%- if tools %}{{- '<|turn|>tools:' + (tools | tojson) + eos_token }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant:' }}{%- endif %}
{#- <tool_call> -#}
"""


def write_model(path: Path) -> Path:
    """A random llama with a long context and a chat template; its tokenizer knows fewer tokens than it has rows."""
    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.core.text.tokenizer import Tokenizer
    from llmctl.spec.model import ModelConfig

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the list of the things that the thing lists"] * 20, trainer)
    shape = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 64, "context": CONTEXT, "init_std": 0.3}
    config = ModelConfig(vocab=300, tie=False, **shape)
    path.mkdir(parents=True)
    save_checkpoint(path, initialise(Transformer(config), seed=5), config)
    Tokenizer(backend, {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE}).save(path)
    return path


class Running:
    """A server that runs.

    Attributes:
        url: http://127.0.0.1:PORT.
        process: of llmctl; its stderr is in the file `log`.
    """

    def __init__(self, url: str, process: "subprocess.Popen[str]", log: Path):
        self.url, self.process, self.log = url, process, log

    def client(self, **more: object) -> OpenAI:
        """OpenAI's own client, which does not try again."""
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60, **more})

    def post(self, path: str, body: object, **more: object) -> httpx.Response:
        """A request as it is."""
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **more)

    def metric(self, name: str, **more: object) -> int:
        """A number of /metrics."""
        lines = httpx.get(f"{self.url}/metrics", **more).text.splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def serving(path: Path, place: Path, *options: object, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`llmctl serve PATH`, on a port that is free; killed at the end if it still runs."""
    log = place / "server.log"
    command = [sys.executable, "-m", "llmctl", "serve", path, "--port", 0, "--dtype", "fp32", "--threads", 1, *options]
    with open(log, "w") as errors:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(env), cwd=place
        )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), log.read_text()
        yield Running(url, process, log)
    finally:
        process.kill()
        process.communicate()
