"""`localmix fit`: one run, as its settings say."""
