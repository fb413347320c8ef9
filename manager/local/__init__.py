"""A worker's own files: keys, high-water marks, and how a file is replaced whole."""
