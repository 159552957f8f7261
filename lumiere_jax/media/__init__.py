"""Videos, pictures and masks, read and written."""
