"""Tools beside the main path."""
