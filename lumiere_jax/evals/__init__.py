"""Scores of models, read from what they make."""
