"""What surrounds a training step: command line, loop, folder, measurements, pictures. README.md has more."""
