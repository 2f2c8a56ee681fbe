"""Background services, and memory that processes share. Imports nothing from relay but values and errors."""
