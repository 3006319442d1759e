"""Ranks: sharding the model over them, timing the phases of a step, detecting hangs, stopping."""
