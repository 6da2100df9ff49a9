"""What happens inside a model: operands and results watched, run alone, or moved by a little."""
