"""One file per target: graph in, folder out; folder in, program out. The file name is the target's name."""
