"""One configuration for a run: the settings of every room, and what completes or refuses them."""
