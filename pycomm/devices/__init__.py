"""GPUs as transports see them: memory, streams and events, of CuPy or of a double."""
