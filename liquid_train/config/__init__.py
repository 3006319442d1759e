"""Hydra configs: composed, typed, checked, explained."""
