"""Measurements of this machine, this build and its peers, each beside a floor taken in the same run."""
