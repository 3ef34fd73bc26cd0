"""The generative model: features, multiplicity, generator and critic.

- bundle_model: the whole model; features, multiplicity and networks are its parts
- gradients: hand-written gradients of the networks; ragged and segments have the sums over an event's muons
- standalone: the networks for generation; with blocks, formulas, extra and bundles it makes an export's file (exported)
- formulas, extra: what training and generation have in common; extra has the declared features of a muon
- saved_model: a model in a directory; served: a model in MLflow
"""
