"""Training one causal language model that reads and writes both text and images."""

__version__ = "0.1.0"
