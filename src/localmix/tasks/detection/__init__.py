"""Detection and instance segmentation: Cascade Mask R-CNN on any backbone, its data and its scores."""
