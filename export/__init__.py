"""A trained model becomes a bundle that a worker can verify and load."""
