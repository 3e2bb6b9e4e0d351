"""Token log-probabilities in tiles of logits, by PyTorch or Triton. `entropyfloor.torch.tokens` calls them."""
