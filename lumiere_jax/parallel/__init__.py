"""Devices and processes: mesh, sharding, multi-host start, hardware facts."""
