"""`localmix validate` and `localmix test`: what a trained network answers."""
