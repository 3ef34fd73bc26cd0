"""Read and write files at paths and URLs, and stage them on a local disk."""
