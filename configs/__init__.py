"""Stages and sizes; each file takes a size, as in base.py:tiny."""
