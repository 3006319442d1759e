"""`python -m benchmarks`: every benchmark, one after another."""

from benchmarks import generation, packed_attention, packing, vq_pass

packed_attention.main()
packing.main()
vq_pass.main([])
generation.main([])
