"""Simulators with a stated model of behaviour, a known optimum and a known value of random slates."""
