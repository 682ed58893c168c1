"""What the ``cuda`` backend is made of: programs, the table of items, launches."""
