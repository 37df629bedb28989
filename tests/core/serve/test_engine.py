"""The engine's thread: what fails is told to those it concerns, and the thread goes on."""

import queue
import threading
from contextlib import contextmanager

import pytest
import torch

from llmctl.core.serve import schema
from llmctl.core.serve.engine import Engine, Job
from llmctl.core.serve.refusal import Refusal
from llmctl.core.serve.served import Served
from llmctl.errors import UserError
from tests.core.decode.conftest import make_model

ASK = {"prompt": "the list", "max_tokens": 8, "temperature": 0, "logit_bias": {"0": -100}}


@contextmanager
def running(served, memory=None, rows=4, queue=8):
    engine = Engine(lambda: served.desk(rows, memory), rows, queue)
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        yield engine
    finally:
        engine.close()
        thread.join()


def made(served, body):
    """A job, and the queue that it tells."""
    ask, told = schema.completion(body), queue.Queue()
    return Job(served.parts(ask, served.prompts(ask)), lambda news: [told.put(one) for one in news]), told


def answer(engine, served, **more):
    """The text of a completion, or why there is none."""
    job, told = made(served, {**ASK, **more})
    engine.submit(job)
    text = ""
    while True:
        one = told.get(timeout=30)
        if isinstance(one, Refusal):
            return one
        text += one.text
        if one.finish:
            return text


def test_a_model_whose_scores_are_no_numbers_is_told_and_the_thread_lives(byte_bpe):
    model = make_model()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    served = Served(("a",), model, byte_bpe, model.config)
    with running(served) as engine:
        for _ in range(2):
            why = answer(engine, served)
            assert isinstance(why, Refusal) and why.status == 500 and "not numbers" in why.message
        assert engine.load == 0


def test_one_that_does_not_fit_the_memory_harms_no_other(byte_bpe):
    model = make_model()
    served = Served(("a",), model, byte_bpe, model.config)
    with running(served) as engine:
        wanted = answer(engine, served)
    config = model.config
    token = 2 * config.layers * config.kv_heads * config.head_dim * 4  # bytes
    with running(served, memory=20 * token) as engine:
        job, told = made(served, {**ASK, "max_tokens": 12})
        engine.submit(job)
        why = answer(engine, served, max_tokens=50)
        assert isinstance(why, Refusal) and why.status == 400 and "bytes" in why.message
        assert answer(engine, served) == wanted
        assert told.get(timeout=30).tokens == 1


def test_other_work_runs_between_steps_and_its_failure_is_its_own(byte_bpe):
    model = make_model()
    served = Served(("a",), model, byte_bpe, model.config)

    def fail():
        raise UserError("no vectors.")

    with running(served) as engine:
        job, told = made(served, {**ASK, "max_tokens": 50})
        engine.submit(job)
        assert engine.work(lambda: threading.current_thread() is threading.main_thread()).result(30) is False
        with pytest.raises(Refusal, match="no vectors"):
            engine.work(fail).result(30)
        pieces = [told.get(timeout=30) for _ in range(50)]
        assert pieces[-1].finish == "length"


def test_the_end_refuses_what_is_not_done_and_what_comes_later(byte_bpe):
    model = make_model(context=100_000)
    served = Served(("a",), model, byte_bpe, model.config)
    engine = Engine(lambda: served.desk(2, None), 2, 8)
    jobs = [made(served, {**ASK, "max_tokens": 50_000}) for _ in range(4)]
    for job, _ in jobs:
        engine.submit(job)  # before the thread begins
    thread = threading.Thread(target=engine.run)
    thread.start()
    jobs[0][1].get(timeout=30)
    engine.close()
    thread.join(30)
    for _, told in jobs:
        while not isinstance(one := told.get(timeout=1), Refusal):
            pass
        assert one.status == 503
    assert engine.load == 0
    with pytest.raises(Refusal) as error:
        engine.submit(made(served, ASK)[0])
    assert error.value.status == 503


def test_a_bug_ends_the_thread_and_nobody_is_left_waiting(byte_bpe):
    model = make_model()
    served = Served(("a",), model, byte_bpe, model.config)

    def broken():
        raise LookupError("a bug")

    engine = Engine(broken, 2, 2)
    job, told = made(served, ASK)
    engine.submit(job)
    with pytest.raises(LookupError):
        engine.run()
    assert told.get(timeout=1).status == 503
