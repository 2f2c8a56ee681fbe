"""A load generator that tells the truth: sends on a schedule made beforehand, counts from the scheduled time."""
