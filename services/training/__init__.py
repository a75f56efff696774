"""`slatewise train`: policies with trainers learn from files, before they decide."""
