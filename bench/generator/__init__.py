"""A load generator without coordinated omission: it follows a computed schedule and counts from the scheduled time."""
