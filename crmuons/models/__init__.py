"""The generative model: features, multiplicity, generator and critic."""
