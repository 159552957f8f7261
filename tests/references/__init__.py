"""Stored outputs of other libraries, and the scripts that make them."""
