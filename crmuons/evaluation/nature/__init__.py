"""Compare events weighted to a cosmic-ray flux with published measurements and calculations: `crmuons validate`."""
