"""The parts that trainers are made of: buckets, the data-parallel wrapper, pipeline stages."""
