"""Figures of merit: distances, ratios, classifiers, calibration."""
