"""What goes wrong when a published file is converted."""


class ConversionError(ValueError):
    """A published file that cannot be converted, or a place it cannot be written to, in one sentence."""
