"""The life of models on a real broker: trained, judged, served, spoiled, replaced, rolled back."""
