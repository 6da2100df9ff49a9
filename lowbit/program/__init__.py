"""The one reading of a jaxpr: what its primitives mean, its equations, loops and calls, and how they are evaluated."""
