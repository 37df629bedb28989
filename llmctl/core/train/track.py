"""TensorBoard: the numbers of metrics.jsonl as events that TensorBoard draws."""

import time
from pathlib import Path
from typing import Any

from llmctl.errors import UserError


class TensorBoard:
    """A sink of metric records.

    Args:
        directory: where the event file goes.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, directory: Path):
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise UserError("--tensorboard needs the package tensorboard.", "pip install 'llmctl[track]'") from error
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(directory))

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one record, at its step."""
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != "step" and isinstance(value, (int, float))
        ]
        self._writer.add_event(
            self._event(wall_time=time.time(), step=record["step"], summary=self._summary(value=values))
        )

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()
