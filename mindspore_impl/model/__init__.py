"""The openPangu causal language model and its decoding with a static KV cache."""
