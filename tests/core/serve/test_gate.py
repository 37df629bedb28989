"""The gate of a server: what it counts."""

import asyncio

import pytest

from llmctl.core.serve.gate import ABORTED, BROKEN, Gate
from llmctl.core.serve.metrics import Metrics

SCOPE = {"type": "http", "method": "GET", "path": "/health", "headers": []}


@pytest.mark.parametrize(("error", "status"), [(ValueError, BROKEN), (asyncio.CancelledError, ABORTED)])
def test_what_a_bug_ends_is_counted_as_such_and_not_as_a_client_that_went_away(error, status):
    async def fails(scope, receive, send):
        raise error

    metrics, lines = Metrics(), []
    gate = Gate(fails, (), None, frozenset({"/health"}), metrics, lines.append)

    async def call():
        with pytest.raises(error):
            await gate(dict(SCOPE), None, None)

    asyncio.run(call())
    assert metrics.requests == {("/health", status): 1} and f"GET /health {status} " in lines[0]
