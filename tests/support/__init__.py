"""What tests of more than one folder, and the benchmarks, share. It tests nothing itself."""
