"""`python -m llmctl` and `torchrun -m llmctl`: the same program as the `llmctl` script."""

from llmctl.cli import main

if __name__ == "__main__":
    main()
