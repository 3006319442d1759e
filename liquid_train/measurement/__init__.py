"""How a measured number is stored: value, interval, provenance. Training and evals both need it."""
