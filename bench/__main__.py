"""`python -m bench` and the console script `dep-bench`."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

from bench import distributed

_SURROUNDINGS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Failures of disk or rights: the user's to mend, so one line says them. Any other OSError is a mistake of ours."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 for a user's mistake (one line says which), 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a character must not end a run of hours
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _fail("stopped; what is complete is kept, and the same command goes on from there", 130)
    except BrokenPipeError:  # `| head` has read enough; a later flush must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.errno not in _SURROUNDINGS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(f"error: {where}{error.strerror}; mend that and give the same command again", 2)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    trains = arguments[:1] == ["run"] and "--dry-run" not in arguments
    if distributed.launched_rank() and not trains:
        return 0  # one process is enough
    from bench.cli import execute
    from bench.errors import UsageError

    named = "python -m bench" if sys.argv[0].endswith("__main__.py") else "dep-bench"
    try:
        if trains:
            distributed.join()
        return execute(arguments, named)
    except UsageError as error:
        return _fail(f"error: {error}", 2)


def _fail(line: str, code: int) -> int:
    distributed.fail(" ".join(line.split("\n")))
    return code


if __name__ == "__main__":
    main()
