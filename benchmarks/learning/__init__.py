"""The proof of the learning: baselines, controls and ablations on real logs, seeds and all."""
