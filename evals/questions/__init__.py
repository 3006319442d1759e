"""Questions about images with their right answers: from shard sets, and what all published benchmarks share."""
