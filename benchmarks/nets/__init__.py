"""What `networks.py` trains: data, the loop, records, and one file a subject."""
