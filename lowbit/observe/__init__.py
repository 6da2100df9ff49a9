"""Looking at a model as it computes: statistics of operands and results, tables of what quantization does."""
