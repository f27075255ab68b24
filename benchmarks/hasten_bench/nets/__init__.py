"""Network definitions that are handed over as files: each module stands alone and has one `network(**options)`."""
