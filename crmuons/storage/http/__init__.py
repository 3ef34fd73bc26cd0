"""Files of web servers, read with retries, checked ranges and checked versions. pelican/ uses the same parts."""
