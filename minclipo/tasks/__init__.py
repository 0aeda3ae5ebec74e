"""Where problems come from, one file a task."""
