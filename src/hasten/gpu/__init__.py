"""NVIDIA GPUs: how a captured graph becomes Tensor Core products, and how a compiled one is replayed."""
