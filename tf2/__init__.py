"""Models, objectives, optimizers and the training loop."""
