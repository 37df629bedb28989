"""llama.cpp, as the wheel xllamacpp has it, run on GGUF files."""

import json
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("GGML_NO_BACKTRACE", "1")

import xllamacpp


class Said(NamedTuple):
    """What llama.cpp made of a prompt, always taking the likeliest token.

    Attributes:
        tokens: ids.
        text: theirs.
        scores: of the likeliest ids of the first token, their log-probabilities.
    """

    tokens: list[int]
    text: str
    scores: dict[int, float]


class LlamaCpp:
    """A GGUF file, loaded; keys and values in float32, so that only its arithmetic differs from ours."""

    def __init__(self, path: Path, embedding: bool = False):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.warmup = params.fit_params = False
        params.verbosity, params.n_gpu_layers, params.n_parallel = 0, 0, 1
        params.embedding = embedding
        if not embedding:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(params)

    def greedy(self, prompt: str, tokens: int = 24) -> Said:
        """Up to so many tokens after a prompt."""
        how = {"n_predict": tokens, "temperature": 0, "n_probs": 5, "cache_prompt": False, "return_tokens": True}
        found = self._post("completion", {"prompt": prompt, **how})
        first = (found.get("completion_probabilities") or [{"id": None}])[0]
        known = first["id"] == found["tokens"][0]  # they leave out tokens that end within a character
        scores = {one["id"]: one["logprob"] for one in first["top_logprobs"]} if known else {}
        return Said(found["tokens"], found["content"], scores)

    def ids(self, text: str) -> list[int]:
        """A text's tokens, no special ones added or read."""
        return self._post("tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def vector(self, text: str) -> list[float]:
        """A text's embedding, of length 1."""
        return self._post("embedding", {"content": text})[0]["embedding"][0]

    def _post(self, what: str, data: dict) -> dict:
        url, headers = f"{self.server.listening_address}/{what}", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(data).encode(), headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)
