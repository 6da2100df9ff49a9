"""Training around quantizers: pure pieces for optax users."""
