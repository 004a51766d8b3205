"""What a run found, for people: tables, figures and one self-contained HTML file."""
