"""From prompts and pixels to videos."""
