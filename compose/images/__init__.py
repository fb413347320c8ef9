"""What runs in the containers of the stack, and what prepares them."""
