"""Image classification: images in folders, shards or memory, and the recipe that trains on them."""
