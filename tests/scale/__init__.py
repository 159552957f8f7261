"""Many devices and many processes against one, in processes of their own."""
