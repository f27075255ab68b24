"""What the limit of this machine is, where a model stands against it, and what would bring it closer."""
