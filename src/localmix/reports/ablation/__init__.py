"""`localmix ablate`: one axis at a time, with the statistics that say what the numbers support."""
