"""The one error of this package."""


class CheckpointError(ValueError):
    """A file of weights that cannot be used; the message says which file, what is wrong, what to do."""
