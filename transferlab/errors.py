"""The one error that speaks to the user."""


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong, where, and what to do.

    The command line prints it and ends with exit code 2; in a notebook it is the last line of the
    traceback.
    """
