"""The one exception type whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """A fault in the input (config, data, checkpoint, disk) that the user can mend.

    The text names the file, key or record and says what to do. `cli.command` prints it without a traceback and exits 2.
    """


class JobFailed(Exception):
    """A job of several processes, or a trial of a sweep, has failed; the message says which and why. Exit code 1."""
