"""The ratios of the README, measured in one run: `make bench`."""
