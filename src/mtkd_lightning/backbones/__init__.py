"""Super-resolution networks, a whole one in a file."""
