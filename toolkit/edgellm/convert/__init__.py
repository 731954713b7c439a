"""Conversion: checkpoint -> recipe -> artifact. See `pipeline` for the order of steps."""
