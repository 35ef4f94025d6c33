"""Trained models of other libraries as `AdaptedModel`: an adapter a file, none of which imports its library."""
