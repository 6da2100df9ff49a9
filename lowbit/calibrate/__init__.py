"""Statistics of the operands, folded over batches, and the ranges they give."""
