"""Semantic segmentation: UPerNet on any backbone, its data, its metrics and its inference."""
