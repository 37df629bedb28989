"""serve: a model behind OpenAI's HTTP interface."""

import os
from pathlib import Path
from typing import Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.amount import size_of
from llmctl.spec.sample import KV_BITS, KvDtype
from llmctl.spec.sentence import Pooling
from llmctl.spec.serve import Serving
from llmctl.spec.tasks import check_kv, suited

KEY = "LLMCTL_API_KEY"


@expand
def serve(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    serving: Serving,
    compute: Compute,
    shown: Shown,
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Layout of conversations: own (the tokenizer's), chatml, llama2, llama3, zephyr, plain, or a file in "
            "Jinja. Default: own, else chatml where the tokenizer has its tokens, else plain.",
        ),
    ] = None,
    special: Annotated[bool, "Read special tokens typed in the prompts of /v1/completions as such."] = False,
    kv_dtype: Annotated[
        KvDtype,
        "Type in which keys and values of earlier tokens are kept, but for those of the last 32; auto: as computed.",
    ] = "auto",
    pooling: Annotated[
        Pooling | None,
        "Of /v1/embeddings: the vector is the mean of the tokens' hidden states, or that of the first (cls) or last "
        "token. Default: as for llmctl embed.",
    ] = None,
    normalize: Annotated[bool, "Of /v1/embeddings: scale vectors to length 1."] = True,
) -> None:
    """Serve a model over HTTP, as OpenAI's API does, for many clients at a time.

    It answers POST /v1/chat/completions, /v1/completions (both also as streams) and /v1/embeddings, and GET
    /v1/models, /health and /metrics. stdout gets one line, the address, when it is ready; stderr a line for each
    request. A request beyond --batch-size waits; one beyond --queue is refused with 429 and Retry-After. Ctrl-C or
    SIGTERM lets nobody in any more, finishes what was begun, and ends with exit code 0.
    """
    keys = _keys(serving.api_key_file)
    budget = None if serving.memory is None else size_of(serving.memory, "--memory")
    path = model_path(model)
    from llmctl.spec.families import read_config, read_config_json
    from llmctl.spec.peft import within
    from llmctl.spec.sentence import read_sentence

    said = read_sentence(path)
    config = within(said.transformer, read_config(said.transformer))
    suited("embed", config, path)
    writes = config.kind != "encoder" and config.lm_head
    bits = KV_BITS[kv_dtype]
    check_kv(kv_dtype, config, path)
    from llmctl.core.serve.listen import bound, url_of

    listener = bound(serving.host, serving.port)
    try:
        from llmctl.core.serve.run import run
    except ModuleNotFoundError as error:
        if error.name not in ("anyio", "starlette", "uvicorn"):
            raise
        raise UserError(f"llmctl serve needs the package {error.name}.", "pip install 'llmctl[serve]'") from error
    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.decode.answer import readable
    from llmctl.core.decode.prompt import stop_ids
    from llmctl.core.decode.ready import left, ready
    from llmctl.core.decode.rules import Rules
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.infer.embed import open_layer
    from llmctl.core.infer.encode import Encoder
    from llmctl.core.serve.app import Server
    from llmctl.core.serve.embedder import Embedder
    from llmctl.core.serve.engine import Engine
    from llmctl.core.serve.served import Served
    from llmctl.core.text.chat import chat_of, own_template

    console, checkpoint = Console(shown), Checkpoint.open(said.transformer)
    tokenizer = checkpoint.tokenizer()
    written = {}
    if writes:
        known = checkpoint.generation or read_config_json(said.transformer)
        eos = stop_ids(tokenizer, config, checkpoint.generation)
        written = {"rules": Rules.of(known, config), "eos": eos, "kv_bits": bits, "special": special}
    if config.kind == "decoder" and writes:
        written["chat"] = chat_of(tokenizer, chat_template)
        if own_template(tokenizer) is None and chat_template is None:
            console.warn(f"{path} has no chat template: conversations are laid out as {written['chat'].name}.")
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    if writes and (slower := ready(loaded, bool(bits))):
        console.say(f"{path} is read by torch's kernels, not by the faster native step: {slower}.")
    room = None if budget is None else left(loaded, place, budget, serving.batch_size)
    names = serving.name or (path.resolve().name,)
    served = Served(names, loaded, tokenizer, readable(loaded), writes=writes, **written)
    limit = min(said.limit or served.config.context, served.config.context)
    pool = pooling or said.pooling or ("last" if config.kind == "decoder" else "mean")
    layers = [open_layer(dense, place.device) for dense in said.layers]
    embedder = Embedder(loaded, Encoder(tokenizer, config), limit, pool, normalize, layers)
    engine = Engine(lambda: served.desk(serving.batch_size, room), serving.batch_size, serving.queue)
    server = Server(served, engine, embedder, serving, console.say, keys)
    if not serving.local and not keys:
        console.warn(f"--host {serving.host} lets everybody in who reaches it: set {KEY} or --api-key-file.")

    def opened() -> None:
        url = url_of(listener)
        if shown.json:
            console.report({"url": url, "model": names[0], "pid": os.getpid()})
        else:
            console.out(f"{url}\n")

    run(server, listener, opened, console.say)


def _keys(file: Path | None) -> tuple[str, ...]:
    """The keys that clients may send; none: they need none.

    Raises:
        UserError: the file holds none, or cannot be read.
    """
    found = [os.environ.get(KEY, "")]
    if KEY in os.environ and not found[0].strip():
        raise UserError(f"{KEY} is empty.", "Unset it, or give it a key.", Exit.USAGE)
    if file is not None:
        try:
            found += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file {file} cannot be read: {error}.", code=Exit.USAGE) from error
        if not any(line.strip() for line in found[1:]):
            raise UserError(f"--api-key-file {file} holds no key.", "Write one into it, a line each.", Exit.USAGE)
    return tuple(line.strip() for line in found if line.strip())
