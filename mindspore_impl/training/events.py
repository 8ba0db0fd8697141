"""Write TensorBoard events synchronously: SummaryWriter's own thread dies on a full disk, and training would hang."""

import time
from pathlib import Path

FLUSH_SECONDS = 30  # longest delay between `add` and the flush to disk


class Events:
    """An event file in `folder`, which hides the events of earlier files beyond step `step`."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._new, self._scalar = event_pb2.Event, scalar
        self._writer = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._new(step=step + 1 if step else 0, session_log=start))
        self.flush()

    def add(self, name: str, value: float, step: int) -> None:
        """Add one scalar. Raises OSError when the disk is full."""
        self._write(self._new(step=step, summary=self._scalar(name, value)))
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def _write(self, event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def flush(self) -> None:
        """Write what was added to disk. Raises OSError."""
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close. Raises OSError."""
        self._writer.close()
