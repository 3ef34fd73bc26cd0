"""Figures of merit: distances, ratios, classifier tests and calibration."""
