"""The commands: a file each, nothing but arguments, calls and printing."""
