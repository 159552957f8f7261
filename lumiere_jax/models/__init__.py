"""Networks: everything that has parameters."""
