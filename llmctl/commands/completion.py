"""completion: the script that lets a shell complete llmctl's commands, options and files."""

import sys
from typing import Annotated, Literal

import typer

from llmctl.flags import expand

Shell = Literal["bash", "zsh", "fish"]


@expand
def completion(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(help="Whose script.")],
) -> None:
    """Print the completion script for bash, zsh or fish.

    Where the shells look for it:

      bash:  llmctl completion bash > ~/.local/share/bash-completion/completions/llmctl
      zsh:   llmctl completion zsh > a directory of $fpath/_llmctl
      fish:  llmctl completion fish > ~/.config/fish/completions/llmctl.fish
    """
    from llmctl.completions import script

    sys.stdout.write(script(shell, context))
