"""The published rules of question answering under the names that other programs import."""

from evals.questions.published_rules import pope_scores as pope_scores
from evals.questions.published_rules import textvqa_accuracy as textvqa_accuracy
