"""The published rules of question answering under the names that other programs import: the rest is in
evals/metrics/vqa.py."""

from evals.benchmarks.published_rules import pope_scores as pope_scores
from evals.benchmarks.published_rules import textvqa_accuracy as textvqa_accuracy
