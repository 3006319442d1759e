"""Looking at batches: before training, and again after a spike."""
