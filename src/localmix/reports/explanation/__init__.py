"""What `localmix explain --image` shows: weights laid over images, connections, receptive fields, variation."""
