"""What is wrong with what the user gave."""


class UserError(Exception):
    """Something the user gave cannot be used: one line says what, and what would do."""
