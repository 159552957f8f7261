"""What training and inference share."""
