"""The configuration of a run: its settings, what completes them, and what refuses them."""
