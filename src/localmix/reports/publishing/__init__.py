"""Networks as folders for others: weights, configuration and a card of what was measured."""
