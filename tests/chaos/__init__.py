"""Attacks on running workers: processes that stop at a named point, and what must hold after."""
