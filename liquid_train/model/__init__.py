"""The language model: backbone, attention within documents, loss."""
