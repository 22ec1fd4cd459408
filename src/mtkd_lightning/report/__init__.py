"""The runs of a folder as one page: who won, by how much, at what cost, and what the pictures look like."""
