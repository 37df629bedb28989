"""The door of the program: the `llmctl` script, `python -m llmctl` and `torchrun -m llmctl`."""

import os
import sys


def main() -> None:
    """Loads llmctl.cli and runs it; a Ctrl-C while it loads ends like one that comes later."""
    try:
        from llmctl.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted.\n")
        sys.stderr.flush()
        os._exit(130)


if __name__ == "__main__":
    main()
