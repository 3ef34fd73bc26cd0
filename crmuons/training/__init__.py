"""Train a run: the WGAN step (trainer.py), the loop (loop.py), one rank (worker.py) and the whole run (driver.py)."""
