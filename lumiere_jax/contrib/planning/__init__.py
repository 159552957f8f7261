"""Plans jobs for TPU slices without TPUs: compiles and analyses programs."""
