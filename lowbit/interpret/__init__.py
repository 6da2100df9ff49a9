"""One interpreter of a model's jaxpr, and the meanings it can give to an op."""
