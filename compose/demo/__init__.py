"""The demo: its scenes, its adversaries, and how it reports."""
