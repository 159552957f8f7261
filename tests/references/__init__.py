"""What outside references gave, kept so that tests need not run them."""
