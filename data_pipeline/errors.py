"""The exception for everything that a user can fix."""


class DataError(Exception):
    """A problem with inputs, options or a prepared folder.

    The message is written for the user: it names the file, key or option and says what to do. The commands print it as
    ``error: MESSAGE`` without a traceback.
    """
