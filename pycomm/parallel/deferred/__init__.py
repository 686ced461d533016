"""Building a model that does not fit: its structure first, then the values of one part."""
