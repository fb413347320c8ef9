"""The programs in the containers of the stack, and their preparation."""
