"""Jobs: work that touches many deliveries in short transactions. Run by delivery processes, requested by http."""
