"""HTTP submission of graphs."""
