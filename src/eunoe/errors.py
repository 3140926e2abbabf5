"""The one error that users are meant to read.

Everything that a user can cause (a missing file, an unknown name, a loss that is not a number) ends in an
``EunoeError`` whose text gives the value received, what is allowed and the next step. The command line prints it
without a traceback and exits with ``code``; in Python it is a ``ValueError``, as the refusals of torch and its peers are.
"""

from __future__ import annotations


class EunoeError(ValueError):
    """Something the user can fix: the text says what was received, what is allowed and what to do next."""

    code: int = 2


class Interrupted(EunoeError):  # noqa: N818 - not a fault: the place is saved
    """The run was asked to stop (SIGINT, SIGTERM) and saved its place first; the same command resumes from there."""

    code = 130
