"""Read and write files at paths and URLs, and stage them on a local disk.

- files, filesystems, listing, stores: any path or URL; http and pelican: web servers and federations
- staging: copies of remote files on a node's own disk
- atomic: names that appear once their content is complete; artifacts: the same at a URL
- ownership, claims, owner: one command at a time writes to an output
- identity, changed: whether a file is still the one that was listed
"""
