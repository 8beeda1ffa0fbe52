"""Images in, batches out: sources, augmentations and the input pipeline."""
