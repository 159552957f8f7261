"""Configs of all stages; each file takes a size, as in base.py:tiny."""
