"""Weights under other libraries' names."""
