"""Fast paths of the networks' arithmetic, each beside the plain reference that it is held against."""
