"""Define what the catalogue of signed files and its readers agree on: manifest, chunks, requests."""
