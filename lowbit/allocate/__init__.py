"""Bits per layer under a budget: from a plan to a plan."""
