"""Captioned clips to batches: sources, decoding, masks, text, pipeline."""
