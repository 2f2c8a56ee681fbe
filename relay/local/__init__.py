"""`relay up`: PostgreSQL, API, delivery and a demo receiver on one machine, supervised."""
