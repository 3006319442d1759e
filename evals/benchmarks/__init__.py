"""Published benchmarks of questions: their files, rules and scores."""
