"""`python -m benchmarks`: every benchmark, one after another."""

from benchmarks import packed_attention

packed_attention.main()
