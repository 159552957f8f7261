"""Files and folders, local and remote: atomic writes, tensors, bundles."""
