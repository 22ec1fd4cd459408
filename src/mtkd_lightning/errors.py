"""The one exception that a user can mend."""


class MTKDError(Exception):
    """Bad input: the message says what was got, what is allowed and what to do; commands print it alone."""
