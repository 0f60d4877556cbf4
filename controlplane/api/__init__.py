"""The control plane over HTTP; thin."""
