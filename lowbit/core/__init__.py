"""Specs, rule text, quantized tensors, the quantizer protocol: what every other folder builds on."""
