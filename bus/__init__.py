"""The bus: its interface, subjects and layout, and in each room one side of it."""
