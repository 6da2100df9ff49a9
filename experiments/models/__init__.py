"""Networks, one per file: a Flax module, and how its float parameters come to be."""
