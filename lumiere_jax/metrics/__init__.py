"""Scores of what models make."""
