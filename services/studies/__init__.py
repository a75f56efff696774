"""Studies: what must be shown with seeds, floors and intervals; each writes one dated table."""
