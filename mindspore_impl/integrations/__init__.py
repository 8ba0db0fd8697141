"""Adapters to other software: mindformers, vLLM servers, lm-evaluation-harness."""
