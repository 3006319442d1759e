"""`python -m benchmarks`: every benchmark, one after another."""

from benchmarks import generation, hf_trainer, loss_memory, packed_attention, packing, vq_pass

packed_attention.main()
packing.main()
vq_pass.main([])
generation.main([])
loss_memory.main([])
hf_trainer.main([])
