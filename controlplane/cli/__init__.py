"""The command line: one file for each group of commands; `controlplane.__main__` joins them."""
