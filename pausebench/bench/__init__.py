"""The comparisons of ``pausebench bench``: ours beside other libraries, alternating in one run."""
