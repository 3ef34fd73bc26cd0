"""The critic's and the generator's gradients, written by hand."""
