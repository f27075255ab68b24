"""One file per technique: graph in, new graph out. The file name is the technique's name; nothing else registers it."""
