"""Value objects: frozen, checked when made, trusted afterwards."""
