"""Training: targets, losses, initialisation, and the loop around them."""
