"""What a sweep records of each flow."""
