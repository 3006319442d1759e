"""What ranks and torchrun tell the launcher by their exit status, besides 0, 1 (traceback) and 2 (told in one line)."""

from __future__ import annotations

LOST_PEER = 4  # of a rank that ends because another one has
MAY_HELP = 64  # added by torchrun: what ended the ranks was no mistake of the user's, so that a new start may go well
