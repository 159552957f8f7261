"""What a job would take on TPUs that are not there: described, compiled for,
measured."""
