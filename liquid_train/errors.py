"""The one exception that is a user's mistake: one line, exit status 2. All else keeps its traceback."""


class UserError(ValueError):
    """What the user gave cannot work. The message names the key or file, its value, and what would be right."""
