"""File formats: parse once into a typed, bounded object; validate before anything native or large happens."""
