"""Diffusion mathematics without parameters; knows no network."""
