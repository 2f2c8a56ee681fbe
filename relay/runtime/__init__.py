"""What runs: background services and memory shared by processes. Imports nothing of relay but values and errors."""
