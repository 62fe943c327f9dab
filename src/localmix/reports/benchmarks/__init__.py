"""`localmix bench`: operators, networks and loaders, timed beside their peers."""
