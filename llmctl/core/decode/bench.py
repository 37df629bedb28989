"""bench: how fast a model reads and writes, beside what the machine's memory and arithmetic would allow."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from llmctl.core.compress.pages import trim
from llmctl.core.decode.native.build import wanted
from llmctl.core.decode.ready import ready
from llmctl.core.decode.rows import rows_of
from llmctl.core.device import DTYPES, Place
from llmctl.core.model.transformer import Transformer
from llmctl.spec import bench as spec
from llmctl.spec.bench import Benching, Speed
from llmctl.spec.memory import kv_cache
from llmctl.spec.model import ModelConfig
from llmctl.spec.sizes import forward_flops

OPENING = 16  # tokens before those that are decoded
SPAN = 1 << 28  # bytes that are read to measure memory: more than caches hold
SIDE = 2048  # of the matrices whose product measures arithmetic
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Start = Sequence[int]  # what the decoder of an encoder-decoder begins with


def _native(model: Transformer) -> str:
    return "LLMCTL_NATIVE says so" if wanted() is None else ready(model)


# How a model that only decodes from now on is laid out; why it cannot be, as the end of a sentence, or "".
ENGINES: dict[spec.Engine, Callable[[Transformer], str]] = {
    "native": _native,
    "stock": lambda model: ready(model, stock=True),
}


@dataclass(frozen=True)
class Way:
    """A way to compute with a checkpoint: the kernels, and the type of the arithmetic, None for its own."""

    engine: spec.Engine
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Turn:
    """What was measured of a way in one turn.

    Attributes:
        dtype: of the arithmetic.
        first: seconds to read the prompt and choose a token.
        steps: seconds of a step, by the number of rows.
        load: seconds.
        memory: bytes, the most.
        weights: bytes that a step reads.
    """

    dtype: torch.dtype
    first: float
    steps: dict[int, float]
    load: float
    memory: int
    weights: int


class Limits:
    """What this machine's memory and arithmetic were measured to reach, the best of all times that they were asked.

    Attributes:
        bandwidth: bytes a second that memory gives to as many threads as compute.
    """

    def __init__(self, place: Place):
        self.place, self.bandwidth = place, 0.0
        self._flops: dict[torch.dtype, float] = {}

    def measure(self, dtypes: Iterable[torch.dtype]) -> None:
        """Once more."""
        numbers = torch.ones(SPAN // 4, device=self.place.device)
        self.bandwidth = max(self.bandwidth, numbers.nbytes / min(self._seconds(numbers.sum) for _ in range(4)))
        for dtype in {torch.float32, *dtypes}:
            square = torch.ones(SIDE, SIDE, device=self.place.device, dtype=dtype)
            found = 2 * SIDE**3 / min(self._seconds(lambda a=square: a @ a) for _ in range(2))
            self._flops[dtype] = max(self._flops.get(dtype, 0.0), found)
        del numbers, square
        trim()  # else it would count as the model's

    def flops(self, dtype: torch.dtype) -> float:
        """Operations a second of a matrix product in that type, or in float32 where that is faster."""
        known = replace(self.place, dtype=dtype).peak_flops() if self.place.device.type == "cuda" else 0.0
        return max(known, self._flops[dtype], self._flops[torch.float32])

    def _seconds(self, work: Callable[[], object]) -> float:
        self.place.synchronize()
        return _timed(lambda: (work(), self.place.synchronize()))


def turns(
    opened: Callable[[torch.dtype | None], Transformer],
    ways: Sequence[Way],
    benching: Benching,
    limits: Limits,
    start: Start = (),
) -> Iterator[tuple[Way, Turn | str]]:
    """Measure each way in turn, over and over, so that a machine that others use slows all alike.

    In each turn the model is opened anew, and it alone is in memory.

    Args:
        opened: gives the model in a dtype, None for its own.
        limits: measured in each round, too.

    Returns:
        A way and its turn; or why it is not open to the model, as the end of a sentence, and it is not tried again.
    """
    closed: set[Way] = set()
    known = {way.dtype for way in ways if way.dtype is not None}
    for _ in range(benching.rounds):
        limits.measure(known)
        for way in ways:
            if way not in closed:
                turn = _turn(opened, way, benching, limits.place, start)
                if isinstance(turn, str):
                    closed.add(way)
                elif turn.dtype not in known:
                    known.add(turn.dtype)
                    limits.measure(known)
                yield way, turn
                gc.collect()
                trim()


@torch.inference_mode()
def _turn(
    opened: Callable[[torch.dtype | None], Transformer], way: Way, benching: Benching, place: Place, start: Start
) -> Turn | str:
    _forget_peak(place)
    began = time.perf_counter()
    model = opened(way.dtype)
    weights, dtype = read_by_a_step(model), next(model.parameters()).dtype
    problem = ENGINES[way.engine](model)
    if problem:
        return problem
    place.synchronize()
    load = time.perf_counter() - began
    vocab = model.config.vocab
    _chosen(rows_of(model, start=start).add([_ids(0, OPENING, vocab)]))  # what is made once is not timed
    first = _timed(lambda: _chosen(rows_of(model, start=start).add([_ids(0, benching.prompt_tokens, vocab)])))
    steps = {}
    for count in benching.rows:
        rows = rows_of(model, start=start)
        scores, times = rows.add([_ids(row, OPENING, vocab) for row in range(count)]), []
        for _ in range(benching.new_tokens):
            tokens = _chosen(scores)
            times.append(time.perf_counter())
            scores = rows.step(tokens)
        steps[count] = median(later - earlier for earlier, later in pairwise(times))
    return Turn(dtype, first, steps, load, _peak(place), weights)


def speeds(found: dict[Way, list[Turn]], benching: Benching, config: ModelConfig, limits: Limits) -> list[Speed]:
    """What the turns of each way come to, by way and number of rows."""
    made, names = [], {dtype: name for name, dtype in DTYPES.items()}
    for way, every in found.items():
        dtype, first = every[0].dtype, median(turn.first for turn in every)
        source = benching.prompt_tokens if config.kind == "encoder-decoder" else 0
        flops = forward_flops(config, benching.prompt_tokens, causal=True, scored=1 / benching.prompt_tokens)
        for rows in benching.rows:
            step = median(turn.steps[rows] for turn in every)
            held = kv_cache(config, OPENING + benching.new_tokens // 2, dtype.itemsize, source=min(source, OPENING))
            read = every[0].weights + rows * held
            made.append(
                Speed(
                    engine=way.engine,
                    dtype=names.get(dtype, str(dtype)),
                    rows=rows,
                    prefill_tokens_per_second=benching.prompt_tokens / first,
                    decode_tokens_per_second=rows / step,
                    time_to_first_token=first,
                    load_seconds=median(turn.load for turn in every),
                    peak_memory=max(turn.memory for turn in every),
                    bytes_per_step=read,
                    bandwidth_share=read / step / limits.bandwidth,
                    flops_share=flops * benching.prompt_tokens / first / limits.flops(dtype),
                )
            )
    return made


def read_by_a_step(model: Transformer) -> int:
    """Bytes of the weights that a step of decoding reads, as they are held: not the rows of tables it looks up."""
    tied = None if model.head is None or not model.config.tie else model.embed.tokens.weight
    tensors = [*model.named_parameters(), *model.named_buffers()]
    own = [one for name, one in tensors if one is tied or not name.startswith(("embed.", "encoder"))]
    return sum(one.nbytes for one in own)


def _chosen(scores: Tensor) -> list[int]:
    return scores.argmax(-1).tolist()


def _ids(row: int, count: int, vocab: int) -> list[int]:
    """A text of a row, unlike those of others from its first token on."""
    return [(7919 * place + 104729 * row + 3) % vocab for place in range(count)]


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _forget_peak(place: Place) -> None:
    """Have the most memory that was held count from now on, where the system can do that."""
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place.device)
    elif CLEAR.exists():
        try:
            CLEAR.write_text("5")  # proc(5), since Linux 4.0
        except OSError:  # not our own to write, in some containers: then it counts from the start
            return


def _peak(place: Place) -> int:
    """The most memory that was held, in bytes."""
    if place.device.type == "cpu" and STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    return place.peak_memory()
