"""What must be done from time to time."""
