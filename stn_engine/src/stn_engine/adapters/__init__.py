"""The ways in: what of a caller's data may be read and written at its address."""
