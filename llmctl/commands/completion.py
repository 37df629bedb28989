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

    The shells look for it in:

      bash:  ~/.local/share/bash-completion/completions/llmctl
      zsh:   _llmctl in a directory of $fpath
      fish:  ~/.config/fish/completions/llmctl.fish
    """
    from llmctl.completions import script

    sys.stdout.write(script(shell, context))
