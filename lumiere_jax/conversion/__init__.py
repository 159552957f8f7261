"""Weights in and out: other libraries' files, and ours."""
