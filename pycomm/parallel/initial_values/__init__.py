"""Initial values: a model that does not fit is built part by part, with the values of the whole."""
