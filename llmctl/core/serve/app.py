"""App: OpenAI's HTTP interface to one model."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import anyio
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from llmctl.core.serve import schema
from llmctl.core.serve.calls import OPEN
from llmctl.core.serve.embedder import Embedder
from llmctl.core.serve.engine import Engine, Job, Told
from llmctl.core.serve.gate import Gate
from llmctl.core.serve.metrics import Metrics
from llmctl.core.serve.post import Inbox, Post
from llmctl.core.serve.refusal import Refusal
from llmctl.core.serve.replies import Replies, vectors
from llmctl.core.serve.respond import Events, Gone, Json, body_of, refused, until_gone
from llmctl.core.serve.served import Served
from llmctl.core.serve.spelling import Spelling
from llmctl.spec.serve import Serving

ALIVE = 15.0  # seconds without news after which a stream says that it is alive


@dataclass(eq=False)
class Server:
    """What the routes share.

    Attributes:
        log: told a line of each request.
        alive: whether the engine's thread is.
    """

    served: Served
    engine: Engine
    embedder: Embedder | None
    serving: Serving
    log: Callable[[str], None]
    keys: Sequence[str] = ()
    alive: bool = True

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.post: Post | None = None
        self.began = int(time.time())
        self.spelling = Spelling(self.served.tokenizer)

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        hosts = frozenset({self.serving.host.strip("[]").lower()}) if self.serving.local else None
        paths = frozenset(route.path for route in routes)
        return Starlette(
            routes=routes,
            middleware=[Middleware(Gate, self.keys, hosts, paths, self.metrics, self.log)],
            exception_handlers={Refusal: _refused, HTTPException: _unknown, Gone: _gone, 500: _bug},
        )

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, schema.chat)

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, schema.completion)

    async def _answer(self, request: Request, read: Callable[[object], schema.Ask]) -> Response:
        """Completions, whole or as a stream."""
        body = await self._body(request)
        self.engine.check()
        inbox: Inbox = asyncio.Queue()
        self.post = self.post or Post(asyncio.get_running_loop())
        post = self.post

        def prepared() -> tuple[Job, Replies]:
            try:
                ask = read(_json(body))
                self.served.named(ask.model)
                prompts = self.served.prompts(ask)
                parts = self.served.parts(ask, prompts)
            except RecursionError as error:  # in a template, or where a schema is written down
                raise Refusal("The request is nested too deeply.") from error
            tell = post.at_once(inbox) if ask.stream else post.in_the_end(inbox, len(parts))
            return Job(parts, tell), self._replies(ask, prompts)

        job, replies = await asyncio.to_thread(prepared)  # templates, tokens and grammars take time
        if replies.ask.echo and replies.ask.top is not None:
            await until_gone(self._scored(replies), request.receive)
        self.engine.submit(job)
        if replies.ask.stream:
            lines = self._stream(request, job, replies, inbox)
            return Events(lines, self.serving.stall, lambda: self._abort(request, job, replies))
        try:
            await until_gone(self._gathered(job, replies, inbox), request.receive)
        except (Gone, asyncio.CancelledError):
            self._abort(request, job, replies)
            raise
        self._count(request, job, replies)
        return Json(replies.whole())

    def _replies(self, ask: schema.Ask, prompts: Sequence[Sequence[int]]) -> Replies:
        texts = []
        if ask.echo:
            decode = self.served.tokenizer.decode
            texts = [one if isinstance(one, str) else decode(list(one)) for one in ask.prompts]
        calls = ask.form.free and self.served.chat is not None and OPEN in self.served.chat.source
        return Replies(ask, self.served.names[0], prompts, texts, self.spelling, calls)

    async def _scored(self, replies: Replies) -> None:
        """The log-probabilities of the prompts."""
        for number, ids in enumerate(replies.prompts):
            for work in self.served.scored(ids, replies.ask.top or 0):
                replies.scored[number] += await asyncio.wrap_future(self.engine.work(work))

    async def _gathered(self, job: Job, replies: Replies, inbox: Inbox) -> None:
        left = len(job.parts)
        while left:
            for told in await inbox.get():
                if isinstance(told, Refusal):
                    raise told
                replies.add(told)
                left -= told.finish is not None

    async def _stream(self, request: Request, job: Job, replies: Replies, inbox: Inbox) -> AsyncIterator[bytes]:
        """Events; those that have come up while the client took the last ones go together."""
        yield b"".join(map(_event, replies.opening())) or b": begun\n\n"
        left = len(job.parts)
        while left:
            news: list[Told] = []
            with anyio.move_on_after(ALIVE):
                news += await inbox.get()
            if not news:
                yield b": alive\n\n"
            while not inbox.empty():
                news += inbox.get_nowait()
            lines = []
            for told in news:
                if isinstance(told, Refusal):
                    _note(request, "failed")
                    yield b"".join([*lines, _event(told.body)])
                    return
                lines += map(_event, replies.chunks(told))
                left -= told.finish is not None
            if lines:
                yield b"".join(lines)
        self._count(request, job, replies)
        yield b"".join(map(_event, replies.closing())) + b"data: [DONE]\n\n"

    async def _embeddings(self, request: Request) -> Response:
        body = await self._body(request)
        embedder = self.embedder

        def prepared() -> tuple[schema.Vectors, list]:
            ask = schema.embeddings(_json(body))
            self.served.named(ask.model)
            if embedder is None:
                raise Refusal(f"{self.served.names[0]} makes no embeddings.", 404, "model", "model_not_found")
            return ask, embedder.rows(ask)

        ask, rows = await asyncio.to_thread(prepared)

        async def made() -> list:
            found: list = [None] * len(rows)
            for places, work in embedder.batches(rows):
                batch = await asyncio.wrap_future(self.engine.work(work))
                for place, vector in zip(places, batch, strict=True):
                    found[place] = base64.b64encode(vector.tobytes()).decode() if ask.base64 else vector.tolist()
            return found

        found = await until_gone(made(), request.receive)
        tokens = sum(map(len, rows))
        self.metrics.prompt_tokens += tokens
        _note(request, f"{tokens} tokens")
        return Json(vectors(self.served.names[0], found, tokens))

    async def _models(self, request: Request) -> Response:
        return Json({"object": "list", "data": [self._described(name) for name in self.served.names]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.served.named(name)
        return Json(self._described(name))

    async def _health(self, request: Request) -> Response:
        if not self.alive:
            raise Refusal("The model's thread has ended.", 503)
        return Json({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        load, rows = self.engine.load, self.engine.rows
        text = self.metrics.text(min(load, rows), max(0, load - rows))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def _described(self, name: str) -> dict[str, object]:
        context = self.served.config.context
        return {"id": name, "object": "model", "created": self.began, "owned_by": "llmctl", "max_model_len": context}

    async def _body(self, request: Request) -> bytes:
        length = request.headers.get("content-length")
        return await body_of(request.receive, length, self.serving.max_bytes, self.serving.stall)

    def _abort(self, request: Request, job: Job, replies: Replies) -> None:
        self.engine.cancel(job)
        self.metrics.aborted += 1
        self._count(request, job, replies)
        _note(request, "aborted")

    def _count(self, request: Request, job: Job, replies: Replies) -> None:
        self.metrics.prompt_tokens += replies.prompt_tokens
        self.metrics.tokens += replies.tokens
        self.metrics.seconds.add(time.monotonic() - job.begun)
        if job.first is not None:
            self.metrics.first.add(job.first - job.begun)
        _note(request, f"{replies.prompt_tokens} + {replies.tokens} tokens")


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(f"The request is not JSON: {error}.") from error


def _event(data: object) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _note(request: Request, text: str) -> None:
    """Something for the line in the log."""
    request.state.notes = [*getattr(request.state, "notes", ()), text]


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refused(error)


async def _unknown(request: Request, error: Exception) -> Response:
    """No such path, or not by this method."""
    assert isinstance(error, HTTPException)
    said = {404: f"There is no {request.url.path}.", 405: f"{request.url.path} does not take {request.method}."}
    answer = refused(Refusal(said.get(error.status_code, error.detail), error.status_code))
    answer.headers.update(error.headers or {})
    return answer


async def _gone(request: Request, error: Exception) -> Response:
    """An answer that nobody reads."""
    return Response(status_code=499)


async def _bug(request: Request, error: Exception) -> Response:
    """What was not foreseen; uvicorn logs it."""
    return refused(Refusal("This is a bug in llmctl; its log says more.", 500))
