"""What is on the machine, for `torpor doctor` and `torpor gc`."""
