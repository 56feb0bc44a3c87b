"""What tests and benchmarks share. Nothing here is a test."""
