"""Diffusion mathematics without parameters, independent of networks."""
