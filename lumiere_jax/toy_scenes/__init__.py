"""Toy scenes of moving shapes: rendered, captioned and recognised."""
