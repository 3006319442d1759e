"""A shard set while it is written."""
