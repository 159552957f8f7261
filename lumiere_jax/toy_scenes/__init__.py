"""Toy scenes of moving shapes: drawn, captioned, and read back from pixels."""
