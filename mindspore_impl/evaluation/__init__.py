"""Benchmarks, record sets and the sandbox: see README.md."""
