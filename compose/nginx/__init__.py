"""nginx in front of the controller: its configuration, its njs, its process."""
