"""Divide endpoints among delivery processes."""
