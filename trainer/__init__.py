"""The engine: trains many tasks on one shared encoder, on any number of processes. `paretrain` is its library."""
