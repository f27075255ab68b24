"""Where the work's weights and rows come from: one file for each source."""
