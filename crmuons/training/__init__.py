"""The WGAN step, the loop around it, and a run from its set-up to its end."""
