"""The application: what a run is, checked before it starts; its training, evaluation and report."""
