"""Real logs that may not be shipped: fetched, checked and converted by `make data`."""
