"""What a user is told when something is wrong: two lines and an exit code, never a traceback."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    RECORDS = 3  # some records failed, each answered in place
    MISMATCH = 4  # inputs do not fit each other: tokenizer, shapes, manifest
    SPACE = 5  # will not fit in memory or on disk
    THRESHOLD = 6  # a threshold (--fail-under) was missed
    RESUMABLE = 75  # interrupted, and the same command line resumes
    INTERRUPTED = 130
    PIPE = 141  # the reader went away


class UserError(Exception):
    """A problem that the user can mend.

    Args:
        problem: what is wrong: the flag, file or tensor, the value found and the value wanted.
        hint: the next thing to type or to look at; "" points to the help of the command.
        code: exit code of the process.
    """

    def __init__(self, problem: str, hint: str = "", code: Exit = Exit.FAILURE):
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.code = code


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the work was saved: the process ends with `code`."""

    def __init__(self, message: str, code: Exit = Exit.RESUMABLE):
        super().__init__(message)
        self.code = code
