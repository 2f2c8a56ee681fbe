"""What an operator sees of a process: metrics and logs."""
