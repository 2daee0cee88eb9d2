"""Several models of one family made into one: their weights read, combined and written a block at a time."""
