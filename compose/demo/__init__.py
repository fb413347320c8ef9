"""The demo: the story, who plays the intruders, and how it is narrated."""
