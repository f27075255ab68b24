"""What a run looks like to a person: tables on the terminal, one HTML file."""
