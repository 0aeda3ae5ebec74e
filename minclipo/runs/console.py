"""The screen: what cannot be printed or written there never ends a run."""

import io
import os
import sys

from tqdm import tqdm

WIDTH = 100  # columns that a line of the log takes at most


class Forgiving(io.RawIOBase):
    """What is written to a raw stream, without errors: a closed pipe, a lost terminal and a full disk drop it."""

    def __init__(self, raw: io.RawIOBase):
        self.raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def write(self, data) -> int:
        try:
            written = self.raw.write(data)
        except OSError:
            written = None
        return len(data) if written is None else written  # None: a pipe that is full and does not wait


def prepare_console() -> None:
    """Make stdout and stderr take everything, line by line: characters that its encoding lacks (cp1252, ascii)
    as \\uXXXX, and what cannot be written any more (`| head -1`, `>&-`) not at all."""
    occupy_closed_descriptors()
    for name in ("stdout", "stderr"):
        setattr(sys, name, forgiving(getattr(sys, name), getattr(sys, f"__{name}__")))


def occupy_closed_descriptors() -> None:
    """Open 0, 1 and 2 where the caller has closed them. The first file to be opened would get that number, and what a
    C library prints would land in it: in a training state, say."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def forgiving(stream, original):
    """The stream made forgiving; original: what Python has opened itself. Another (a notebook's, a test's) is not
    replaced, since somebody reads it."""
    if stream is None:  # closed when Python started
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    if stream is not original or not hasattr(stream, "buffer"):
        return stream
    raw = Forgiving(getattr(stream.buffer, "raw", stream.buffer))  # with python -u there is no buffer in between
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=True)


def say(text: str) -> None:
    """A line on the screen, above the progress bars. Safe in a notebook, in a program that has not called
    `prepare_console`, and in a signal handler."""
    try:
        tqdm.write(text)
    except UnicodeEncodeError:
        say(text.encode("ascii", "backslashreplace").decode())
    except (AttributeError, OSError, RuntimeError, ValueError):  # no stdout, a closed one, or in the middle of a write
        pass


def wrapped(parts: list[str], room: int = WIDTH) -> str:
    """The parts with commas between, in lines of at most `room` columns where each part fits; later ones indented."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}, {part}"
        lines[-1:] = [longer] if len(longer) < room else [lines[-1] + ",", f"  {part}"]
    return "\n".join(lines)
