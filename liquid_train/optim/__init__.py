"""Optimizers, learning rates."""
