"""Exceptions whose message is all that a user needs: the command line prints it, without a traceback."""


class UserError(Exception):
    """A mistake of the user: one line that names the field and the fix; the command line prints it and exits with status 2."""


class StorageError(Exception):
    """Something could not be written while a run was under way; `str()` says what, why, and how to go on."""
