"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake of the user: one line that names the field and the fix; the command line prints it and exits with status 2."""
