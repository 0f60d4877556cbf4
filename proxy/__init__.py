"""The data plane: one call, from bytes in to bytes out and one record. It decides with what it holds and never asks on the way."""
