"""Being written by the owner of tests/cli (see OWNED)."""
