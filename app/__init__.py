"""The application: settings and checks of runs; training, evaluation, export, reports."""
