"""A file for each resource: nothing but what is particular about its operations."""
