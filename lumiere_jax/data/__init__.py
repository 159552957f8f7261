"""Data: sources of captioned clips, and batches of them."""
