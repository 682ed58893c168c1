"""First contact with a GPU: ``python -m gpu_check`` learns all that it can in some minutes."""
