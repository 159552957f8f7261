"""Stub for tools that need a setup.py; see pyproject.toml."""
__import__("setuptools").setup()
