"""`localmix report`: what this machine can regenerate of the paper, and what runs found, as one page."""
