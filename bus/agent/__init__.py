"""An agent's end of the bus: its link to the managers, and its process."""
