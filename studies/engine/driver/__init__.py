"""What leads a study: it starts workers, keeps the tracker up to date, shows progress."""
