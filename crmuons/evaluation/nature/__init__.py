"""Events weighted to a cosmic-ray flux, beside published measurements and calculations: the work of `crmuons validate`."""
