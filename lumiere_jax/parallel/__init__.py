"""Devices and processes: the mesh, sharding of batches and state."""
