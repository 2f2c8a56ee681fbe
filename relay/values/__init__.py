"""Small pure functions and types. They do no I/O, and clocks are passed in."""
