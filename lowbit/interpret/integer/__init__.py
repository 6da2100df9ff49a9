"""Full-integer plans: a grid for every tensor that crosses an operation, and the integer arithmetic between them."""
