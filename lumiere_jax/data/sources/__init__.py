"""Data sources: captioned clips by index."""
