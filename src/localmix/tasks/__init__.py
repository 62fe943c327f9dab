"""What the networks are trained for: data, losses, metrics; the loop is Lightning's."""
