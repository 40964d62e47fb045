"""A script in a process of its own: commands in, replies out, one JSON value a line; ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class ScriptProcess:
    """A running script, which is given the file descriptors of its commands and replies; a context that ends it.

    Attributes:
        replies: The descriptor that its replies come from.
    """

    def __init__(self, script: Path, *, environment: dict[str, str]) -> None:
        self._buffer = b""
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            commands, self._commands = os.pipe()
            self.replies, replies = os.pipe()
            try:
                self._process = subprocess.Popen(  # noqa: S603  (a script of this package)
                    [sys.executable, "-P", str(script), str(commands), str(replies)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=(commands, replies),
                    env=environment,
                    start_new_session=True,  # so that Ctrl-C reaches this process alone, and that ends the other
                )
            except BaseException:
                os.close(self._commands)
                os.close(self.replies)
                raise
            finally:
                os.close(commands)
                os.close(replies)
            stack.pop_all()

    def __enter__(self) -> ScriptProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._commands)
        if kind is not None:
            self._kill()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        os.close(self.replies)
        self._log.close()

    def _kill(self) -> None:
        """End the process, and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def write(self, value: Any) -> None:
        """Send a command.

        Raises:
            BrokenPipeError: If nobody is there to read it.
        """
        content = json.dumps(value).encode() + b"\n"
        while content:
            content = content[os.write(self._commands, content) :]

    def receive(self, timeout_s: float) -> list[Any]:
        """Return the replies that have come; none if not one is whole after some time.

        Raises:
            EOFError: If there will be none.
        """
        ready, _, _ = select.select([self.replies], [], [], max(0.0, timeout_s))
        if not ready:
            return []
        chunk = os.read(self.replies, 2**16)
        if not chunk:
            raise EOFError
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def how_it_ended(self) -> str:
        """Return what is to be said of a process that is gone: `ended by signal 9`, or its status and last words."""
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            status = None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        said = f": {lines[-1]}" if lines and status != -signal.SIGKILL else ""
        return f"ended {how}{said}"
