"""Experiments: data, models, one job, one config file each. Not part of the installed package."""
