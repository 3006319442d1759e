"""Ranks: how the model is shared out, how long each phase takes, who hangs."""
