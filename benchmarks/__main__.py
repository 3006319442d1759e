"""`python -m benchmarks`: every benchmark, one after another."""

from benchmarks import access_pattern, generation, hf_trainer, loss_memory, packed_attention, packing, vq_pass

packed_attention.main()
packing.main()
access_pattern.main()
vq_pass.main([])
generation.main([])
loss_memory.main([])
hf_trainer.main([])
