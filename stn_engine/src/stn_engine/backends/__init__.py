"""Ways to compute the operations of the engine, behind one protocol."""
