"""Files that are whole at any time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which then takes the place of `path`; its folder is made if it is missing.

    Another process sees the old file or the new one. A process that is killed leaves the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    yield unfinished
    unfinished.replace(path)


def append_line(file: IO[str], line: str) -> None:
    """Append a line to a file that is open for reading too; half a line of a killed writer is cut off first."""
    file.truncate(end_of_lines(file.fileno()))
    file.write(line + "\n")
    file.flush()


def end_of_lines(file: int) -> int:
    """Return the size of a file up to the end of its last complete line, from its descriptor."""
    end = os.fstat(file).st_size
    if end == 0 or os.pread(file, 1, end - 1) == b"\n":
        return end
    return os.pread(file, end, 0).rfind(b"\n") + 1
