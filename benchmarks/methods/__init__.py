"""Speed of single methods against plain references."""
