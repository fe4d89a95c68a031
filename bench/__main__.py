"""`python -m bench` and the console script `dep-bench`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; a user's mistake is one line and exit code 2."""
    from bench.cli import app
    from bench.errors import UsageError

    try:
        app(prog_name="python -m bench" if sys.argv[0].endswith("__main__.py") else None)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; complete batches are kept: the same command goes on from there", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
