"""One file per question; each answers with a table of what was measured, what stands beside it, and the goal."""
