"""Making videos: the cascade at inference and what it is conditioned on."""
