"""Other servers of the same model, each as its own documentation shows it; one file each."""
