"""The generative model: features, multiplicity, generator and critic.

- bundle_model: the model as one; features, multiplicity and networks are its parts
- gradients: the networks' gradients by hand, with ragged and segments for the sums over an event's muons
- standalone: the networks for generation; with blocks, formulas, extra and bundles it makes an export's file (exported)
- formulas, extra: what training and generation have in common; extra has the declared features of a muon
- saved_model: a model in a directory; served: one in MLflow
"""
