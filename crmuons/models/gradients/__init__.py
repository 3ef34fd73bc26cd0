"""Hand-written gradients of the set networks. functions.py is the entry, and derives the equations."""
