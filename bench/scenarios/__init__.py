"""The scenarios, one file each, with the code that runs them."""
