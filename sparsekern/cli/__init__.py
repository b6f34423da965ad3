"""The command line. One module a verb, named like it, with ``add_arguments(parser)`` and ``run(args)``."""


class UserError(Exception):
    """A mistake in the input or the environment: shown as one message, without a traceback."""
